from .circuit import AttentionEdge as AttentionEdge
from .circuit import Circuit as Circuit
from .comparison import (
    Comparison as Comparison,
)
from .comparison_file import (
    load_comparison as load_comparison,
)
from .comparison_file import (
    save_comparison as save_comparison,
)
from .discover_config import DiscoverConfig as DiscoverConfig
from .discovery import Discovery as Discovery
from .exchange import (
    from_networkx as from_networkx,
)
from .exchange import (
    read_graphml as read_graphml,
)
from .exchange import (
    to_networkx as to_networkx,
)
from .exchange import (
    write_graphml as write_graphml,
)
