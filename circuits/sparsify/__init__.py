"""Sparse post-training: a dense model in, its sparse twin out (arXiv 2512.05865).

The number of open attention edges is pushed down while the cross-entropy on held-out text stays
under a bound, the dense model's own. `config` is the recipe, `data` and `dataset_stream` the text,
`loss` the Lagrangian and its multiplier, `layer_start` what large models begin with, `run` one run
with its steps and checkpoints, `run_files` what else it writes, `train` the loop around it,
`result` what comes of it: the sparsest state that kept the bound.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
