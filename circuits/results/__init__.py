"""Results: what discovery and comparison return, as plain values with `save` and `load`.

A `Circuit` is a set of components with their scores, a `Discovery` the circuits of one model with
their evidence, a `Comparison` those of several models side by side, with its tables. `intervals`
makes ratios and their intervals of what is stored, `exchange` speaks other tools' formats. Nothing
here runs a model: importing it loads neither TransformerLens nor transformers, so results can be
read, drawn and compared anywhere.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
