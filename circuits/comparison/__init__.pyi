from .compare_models import compare as compare
from .robustness import robustness as robustness
from .roles import head_roles as head_roles
from .study_model import study as study
from .transfer import transfer as transfer
