"""Discovery: from scores to the smallest circuit that still shows the behaviour.

`rank` puts components in order and builds circuits of the first so many, `search` finds how many
are needed by real interventions, `find_circuits` does both for a model and a task and gathers the
evidence. `quality` judges any circuit, `agreement` compares one with a known one, and `hand_built`
makes models whose circuit is known.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
