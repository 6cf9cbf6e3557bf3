from .card import GateCard as GateCard
from .density import (
    Density as Density,
)
from .density import (
    dense_density as dense_density,
)
from .density import (
    measure_density as measure_density,
)
from .gate import (
    add_gate as add_gate,
)
from .gate import (
    gate_bias as gate_bias,
)
from .gate import (
    is_gated as is_gated,
)
from .gate import (
    remove_gate as remove_gate,
)
from .top_k import add_top_k as add_top_k
from .top_k import is_top_k as is_top_k
