"""Models from GGUF files: read by transformers, dequantised, and then like any other.

transformers knows a dozen of llama.cpp's architectures. What it returns remembers that it was
quantised and refuses to be saved, so its weights are moved into a fresh model of the same config.
That they were quantised once stays written in the config (`hf_files.QUANTIZATION`), also in the
folders that are saved from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from circuits.models.config_file import Held, check_config, check_sizes, hf_config
from circuits.models.gguf_header import GGUFHeader, read_header
from circuits.models.hf_files import QUANTIZATION, quiet_transformers, read_weights, with_bos
from circuits.models.tokenizer_files import check_vocabulary
from circuits.reading import refused_as, shown

SUFFIX = ".gguf"

# Rules of splitting text that cut numbers into digits first, as llama.cpp names them; transformers
# takes them for GPT-2's, which does not. (llama.cpp, src/llama-vocab.cpp.)
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
# And those that are GPT-2's by the same source.
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "jina-es", "jina-de", "mellum")


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file whose header and config were read, but no weights.

    Attributes:
        path: The file.
        header: What stands before the weights.
        config: The Hugging Face config.
        raw: The same as a dict.
    """

    path: Path
    header: GGUFHeader
    config: PretrainedConfig
    raw: dict[str, Any]


def find_gguf(name_or_path: str | Path) -> Path | None:
    """Returns the path of a GGUF file; None for what is not the path of one.

    Raises:
        FileNotFoundError: a path that ends in `.gguf` where nothing is.
    """
    if not str(name_or_path).endswith(SUFFIX):
        return None
    path = Path(name_or_path)
    with contextlib.suppress(RuntimeError):  # no such user; the path is then taken as it stands
        path = path.expanduser()
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return None
    except (OSError, ValueError) as error:
        if not os.path.lexists(path):
            raise FileNotFoundError(f"there is no file {str(path)!r}") from error
    return path


def open_gguf(path: Path) -> GGUFFile:
    """Returns what a GGUF file says about its model, the sizes checked against its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no GGUF file, a damaged one, or an architecture that transformers does not read.
    """
    header = read_header(path)
    with _alone(path) as source, refused_as(str(path), "transformers cannot read its config"):
        config = AutoConfig.from_pretrained(**source, local_files_only=True)
    config.name_or_path = ""
    length = header.values.get(f"{header.values.get('general.architecture')}.context_length")
    if length is not None and hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = length  # which transformers leaves out for GPT-2
    setattr(config, QUANTIZATION, f"GGUF, {header.quantization}")
    raw = config.to_dict()
    check_config(raw, str(path))
    check_sizes(raw, _held(path, header), str(path))
    config = hf_config(raw, str(path))
    return GGUFFile(path, header, config, config.to_dict())


def read_gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a GGUF file.

    Warns:
        UserWarning: the file names a rule of splitting text that is not known here.

    Raises:
        ValueError: transformers cannot read it, or it gives ids beyond the model's vocabulary.
    """
    where = str(file.path)
    with _alone(file.path) as source, refused_as(where, "its tokenizer cannot be read"):
        tokenizer: Any = AutoTokenizer.from_pretrained(**source, local_files_only=True)
        tokenizer = _without_surplus(tokenizer, file.config.vocab_size)
        rule = file.header.values.get("tokenizer.ggml.pre")
        if rule in _DIGITS_APART:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        elif rule is not None and rule not in _AS_GPT2 and _splits_as_gpt2(tokenizer):
            warnings.warn(
                f"{where}: its tokenizer splits text by the rule {shown(rule)}, which is not known "
                "here, and is read with GPT-2's; compare a few texts' tokens with those of the "
                "model's own tokenizer before you trust a number",
                stacklevel=2,
            )
        with_bos(tokenizer)("a")  # What is wrong with its settings shows now.
    check_vocabulary(tokenizer, file.config.vocab_size, f"the tokenizer in {where}")
    return tokenizer


def read_gguf_model(file: GGUFFile, dtype: torch.dtype) -> PreTrainedModel:
    """Returns the dequantised model, which can be saved.

    Raises:
        ValueError: weights that transformers cannot read, or that do not fit the config.
    """
    where = str(file.path)
    with _alone(file.path) as source:
        loaded = read_weights(
            Path(source["pretrained_model_name_or_path"]),
            file.config,
            dtype,
            _held(file.path, file.header),
            gguf_file=source["gguf_file"],
            where=where,
        )
    with quiet_transformers(), refused_as(where, "its weights cannot be dequantised"):
        model = AutoModelForCausalLM.from_config(file.config, dtype=dtype, trust_remote_code=False)
        model.load_state_dict(loaded.state_dict())
    return model.eval()


def _splits_as_gpt2(tokenizer: Any) -> bool:
    """Whether text is split by the byte-level rule alone, which transformers falls back on."""
    return isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)


def _without_surplus(tokenizer: Any, d_vocab: int) -> PreTrainedTokenizerBase:
    """The tokenizer without what transformers added: GPT-2's end of text, where none is named."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    surplus = {token["content"] for token in content["added_tokens"] if token["id"] >= d_vocab}
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] not in surplus
    ]
    special = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(tokenizer, name) not in {None, *surplus}
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        chat_template=tokenizer.chat_template,
        **special,
    )


def _held(path: Path, header: GGUFHeader) -> Held:
    return Held(f"the weights in {path}", len(header.tensors), header.n_elements)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[dict[str, str]]:
    """Where transformers finds the file alone: it would read what lies next to it too."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        (Path(folder) / f"model{SUFFIX}").symlink_to(path.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": f"model{SUFFIX}"}
