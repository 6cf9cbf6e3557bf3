from .compare_models import compare as compare
from .robustness import robustness as robustness
from .roles import head_roles as head_roles
from .transfer import transfer as transfer
