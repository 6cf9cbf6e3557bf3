"""Comparison: a dense model and its sparse twin on the same tasks, prompts, method and target.

`compare_models` runs discovery on both and measures how good they are, `study_model` does so for
one model by itself (both by `gather`), and `parts` keeps what is found. `transfer` runs each
model's circuit in the other, `roles` says what the heads do, `robustness` varies the choices behind
a ratio one at a time. What comes out are values of `circuits.results`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
