"""The gate: every attention edge of a model open or shut, and the counting of open ones.

A gate is a Bernoulli variable on each pair of query and key inside a head, with the probability
sigmoid(q.k / sqrt(d_head) + b): drawn while the model is trained, with a straight-through gradient,
and decided by the sign of the logit when it is evaluated (arXiv 2512.05865). What is let through is
not normalised again.

It is folded into the hook points of TransformerLens: `add_gate` puts modules of its own in the
place of a layer's `hook_attn_scores` and `hook_pattern`, and between them a new `hook_gate`, which
can be read, patched and frozen like any activation. `top_k` masks attention in the same place
without any training, as a baseline. `density` counts what is open; `card` is the file `gate.json`.
`fused` computes the same numbers without ever holding them, for training and long contexts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
