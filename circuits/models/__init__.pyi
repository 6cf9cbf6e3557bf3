from .backend import (
    Backend as Backend,
)
from .backend import (
    Model as Model,
)
from .backend import (
    backend_of as backend_of,
)
from .backend import (
    component_hooks as component_hooks,
)
from .hub import push_to_hub as push_to_hub
from .info import (
    ModelInfo as ModelInfo,
)
from .info import (
    model_info as model_info,
)
from .load import (
    checked_device as checked_device,
)
from .load import (
    copy_model as copy_model,
)
from .load import (
    from_hf as from_hf,
)
from .load import (
    load_bridge as load_bridge,
)
from .load import (
    load_model as load_model,
)
from .load import (
    named_weights as named_weights,
)
from .load import (
    new_model as new_model,
)
from .load import (
    tokenizer_of as tokenizer_of,
)
from .load import (
    versions as versions,
)
from .saving import frozen_parameters as frozen_parameters
from .saving import save_model as save_model
