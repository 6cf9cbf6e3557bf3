from .ablate import (
    run_attention_edges as run_attention_edges,
)
from .ablate import (
    run_edges as run_edges,
)
from .activations import Activations as Activations
from .experiment import (
    CannotDoTask as CannotDoTask,
)
from .experiment import (
    Experiment as Experiment,
)
from .experiment import (
    check_does_task as check_does_task,
)
from .experiment import (
    faithfulness as faithfulness,
)
from .experiment import (
    graph_of as graph_of,
)
from .experiment import (
    prepare_experiment as prepare_experiment,
)
