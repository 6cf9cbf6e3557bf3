"""Interventions: a model run for real with only a part of it intact.

`activations` records what every component writes, `ablated` what stands in for it outside a circuit
(its value in the corrupted run, a mean, or nothing). An `experiment` is a model with prompts, a
metric and an ablation; `ablate` runs it with chosen edges or attention edges and everything else
replaced, at the positions that count (`window`). No number here is an estimate: this is the referee
of every attribution.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
