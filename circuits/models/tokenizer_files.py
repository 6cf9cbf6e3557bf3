"""The tokenizer in a model's folder: read, and checked against the model's vocabulary.

A tokenizer of another model gives ids that the embedding has no row for, which shows only when the
first prompt with such a token is run. So the largest id is compared with the vocabulary on loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from circuits.models.hf_files import quiet_transformers, with_bos
from circuits.reading import is_there, read_json, read_text, refused_as, shown

_TOKENIZER_FILE = "tokenizer.json"
_OBJECTS = (
    _TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def read_tokenizer(folder: Path, d_vocab: int) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer in a folder; None if there is none, the model then takes tokens.

    Raises:
        ValueError: a tokenizer's file that is damaged or is something else, or that gives ids of
            `d_vocab` and more; the error names it.
    """
    names = (_TOKENIZER_FILE, "tokenizer_config.json", "tokenizer.model")
    if not any([is_there(folder / name) for name in names]):
        return None
    for name in _OBJECTS:
        if is_there(folder / name):
            read_json(folder / name)
    path = folder / _TOKENIZER_FILE
    if is_there(path):
        with refused_as(str(path), "it is not a tokenizer's file"):
            Tokenizer.from_str(read_text(path))
    where = str(path if is_there(path) else folder / "tokenizer_config.json")
    with quiet_transformers(), refused_as(where, "the tokenizer in this folder cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    check_vocabulary(tokenizer, d_vocab, f"the tokenizer in {folder}")
    with refused_as(where, "the tokenizer in this folder cannot be used"):
        with_bos(tokenizer)("a")  # What is wrong with its settings shows now.
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase | None, d_vocab: int, where: str) -> None:
    """Refuses a tokenizer that gives ids beyond a model's vocabulary.

    Raises:
        ValueError: the error begins with `where` and names a token, its id and what is allowed.
    """
    if tokenizer is None:
        return
    ids: dict[str, Any] = tokenizer.get_vocab()
    without = [name for name, index in ids.items() if not isinstance(index, int)]
    if without:
        raise ValueError(f"{where} has a token without an id: {shown(without[0])}")
    beyond = {name: index for name, index in ids.items() if index >= d_vocab}
    if beyond:
        name = max(beyond, key=lambda token: beyond[token])
        raise ValueError(
            f"{where} gives ids up to {beyond[name]} ({shown(name)}), but the model has a "
            f"vocabulary of {d_vocab}, ids 0 to {d_vocab - 1}: it is another model's tokenizer, or "
            f"has {len(beyond)} added tokens that the model has no embedding for"
        )
