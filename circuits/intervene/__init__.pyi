from .ablate import (
    CannotDoTask as CannotDoTask,
)
from .ablate import (
    Experiment as Experiment,
)
from .ablate import (
    check_does_task as check_does_task,
)
from .ablate import (
    faithfulness as faithfulness,
)
from .ablate import (
    graph_of as graph_of,
)
from .ablate import (
    prepare_experiment as prepare_experiment,
)
from .ablate import (
    run_attention_edges as run_attention_edges,
)
from .ablate import (
    run_edges as run_edges,
)
from .activations import Activations as Activations
