"""Sparse attention post-training, and the circuits of dense and sparse models side by side.

Data walks one way through the folders, and each of them is one idea: `tasks` make prompts, `models`
are loaded and `sparsify` trains their sparse twins with the `gate`; `intervene` runs a model with a
part replaced, `attribute` scores every component, `discovery` finds the circuit of one model and
`comparison` sets two side by side. What they return are the values in `results`, which `figures`
draws and `report` writes; neither of these three ever loads a model.

The public names are imported when they are first used, so that `circuits --help` answers at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
