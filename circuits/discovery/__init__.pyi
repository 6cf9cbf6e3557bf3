from .agreement import agreement_of as agreement_of
from .agreement import auroc as auroc
from .find_circuits import discover as discover
from .quality import (
    completeness_of as completeness_of,
)
from .quality import (
    faithfulness_of as faithfulness_of,
)
from .quality import (
    minimality_of as minimality_of,
)
from .rank import (
    build_circuit as build_circuit,
)
from .rank import (
    build_circuit_above as build_circuit_above,
)
from .rank import (
    rank_components as rank_components,
)
from .search import find_smallest as find_smallest
