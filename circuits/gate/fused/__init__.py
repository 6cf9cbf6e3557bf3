"""Gated attention as one step, for training and long contexts.

The hook points of a gated model (circuits/gate/gate.py) hold scores, gate and pattern of all
queries and keys. Here the same numbers are computed a block at a time and never held, wherever no
hook asks for them.
"""

from circuits.gate.fused.placement import choose_path, fused_attention

__all__ = ["choose_path", "fused_attention"]
