"""Whether two models read text as the same tokens.

Numbers per token, such as cross-entropies, can be compared only then, and only then may one model's
tokens be given to the other.
"""

from __future__ import annotations

import hashlib
from typing import Any

_PROBE = (
    "Mary gave a drink to John.",
    " The war lasted from 1732 to 17",
    "def f(x):\n\treturn x[0]  # twice\n\n",
    "naïve café, Ünïcödé — 東京 🙂\u00a0\u200b",
    "MiXeD cAsE   and    spaces ",
)
"""Texts on which tokenizers of one vocabulary differ: cases, digits, spaces, other scripts."""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Returns a short digest of a tokenizer's vocabulary and of how it encodes a few texts."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in _PROBE]
    start = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return hashlib.sha256(repr((vocabulary, encoded, start)).encode()).hexdigest()[:12]
