from .attribute import register_method as register_method
from .attribute.attribution_patching import attribution_patching as attribution_patching
from .attribute.input_path import integrated_gradients as integrated_gradients
from .attribute.score_split import split_score as split_score
from .attribute.scores import Scores as Scores
from .comparison.compare_models import compare as compare
from .comparison.study_model import study as study
from .discovery.find_circuits import discover as discover
from .gate.density import measure_density as measure_density
from .gate.gate import add_gate as add_gate
from .gate.gate import is_gated as is_gated
from .gate.gate import remove_gate as remove_gate
from .graph import Graph as Graph
from .metrics import register_metric as register_metric
from .models.load import from_hf as from_hf
from .models.load import load_bridge as load_bridge
from .models.load import load_model as load_model
from .models.saving import save_model as save_model
from .prompts import PromptPair as PromptPair
from .report.write import write_results as write_results
from .results.circuit import Circuit as Circuit
from .results.comparison import (
    Comparison as Comparison,
)
from .results.comparison_file import (
    load_comparison as load_comparison,
)
from .results.comparison_file import (
    save_comparison as save_comparison,
)
from .results.discover_config import DiscoverConfig as DiscoverConfig
from .results.discovery import Discovery as Discovery
from .results.score_split import ScoreSplit as ScoreSplit
from .show import show_attention as show_attention
from .sparsify.config import TrainConfig as TrainConfig
from .sparsify.train import post_train as post_train
from .tasks import (
    Task as Task,
)
from .tasks import (
    find_task as find_task,
)
from .tasks import (
    get_task as get_task,
)
from .tasks import (
    register_task as register_task,
)
from .tasks import (
    task_from_file as task_from_file,
)
