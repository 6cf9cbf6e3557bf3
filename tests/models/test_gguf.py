"""GGUF files: what is loaded is what was written, and what is wrong with a file is said."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuits.gate.gate import add_gate
from circuits.models import load_model, model_info, save_model
from circuits.models.hf_files import quantization_of
from circuits.models.load import tokenizer_of
from circuits.prompts import token_ids
from tests.models.gguf_files import make_model, write_gguf

TOKENS = torch.tensor([[0, 5, 9, 3, 22, 7, 2, 14], [0, 1, 1, 28, 6, 6, 19, 4]])


@torch.no_grad()
def hf_logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS).logits


def unpacked_q4_1(weight: Tensor) -> Tensor:
    """What is left of a matrix in Q4_1, block by block: 16 levels from the least to the greatest.

    Both the least and the step between levels are kept as half-precision numbers.
    """
    out = weight.clone()
    for row in out:
        for start in range(0, len(row), 32):
            block = row[start : start + 32]
            low = block.min()
            step = (block.max() - low) / 15
            levels = ((block - low) / step + 0.5).floor().clamp(0, 15)
            row[start : start + 32] = levels * step.half().float() + low.half().float()
    return out


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_file_of_floats_is_the_model_that_it_was_made_of(tmp_path: Path, kind: str) -> None:
    written = make_model(kind)
    path = write_gguf(tmp_path / "x.gguf", written, kind=kind)
    model = load_model(path)
    torch.testing.assert_close(model(TOKENS), hf_logits(written), atol=1e-4, rtol=1e-4)
    assert model_info(path).quantization == quantization_of(model) == "GGUF, F32 100%"
    assert model_info(path).n_parameters == written.num_parameters()


def test_quantised_weights_are_what_their_blocks_say(tmp_path: Path) -> None:
    model = make_model("llama")
    path = write_gguf(
        tmp_path / "x.gguf",
        model,
        types=lambda name: "F16" if name.startswith("output") else "Q4_1",
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                is_head = name.startswith("lm_head")
                weight.copy_(weight.half().float() if is_head else unpacked_q4_1(weight))
    loaded = load_model(str(path))
    torch.testing.assert_close(loaded(TOKENS), hf_logits(model), atol=1e-4, rtol=1e-4)
    assert quantization_of(loaded) == model_info(path).quantization
    assert quantization_of(loaded).startswith("GGUF, Q4_1 7")


def test_a_model_of_a_gguf_file_is_saved_as_any_other_and_remembers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", make_model("llama"), types=lambda _name: "Q8_0")
    model = load_model(path)
    add_gate(model, 0.5)
    save_model(model, tmp_path / "twin")
    again = load_model(tmp_path / "twin")
    assert torch.equal(model(TOKENS), again(TOKENS))
    for info in (model_info(path), model_info(tmp_path / "twin")):
        assert info.quantization == quantization_of(again) == "GGUF, Q8_0 100%"
    tokenizers = [tokenizer_of(either) for either in (model, again)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    text = "When Mary met  17 Johns\n\n32"
    assert token_ids(tokenizers[0], text) == token_ids(tokenizers[1], text)


def test_text_is_split_by_the_rule_that_the_file_names(tmp_path: Path) -> None:
    written = make_model("llama")
    tokens = {}
    for pre in ("gpt-2", "smollm"):
        path = write_gguf(tmp_path / f"{pre}.gguf", written, pre=pre)
        tokenizer = tokenizer_of(load_model(path))
        tokens[pre] = tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "in 1732"))
    assert tokens["gpt-2"] == ["in", "Ġ1732"]
    assert tokens["smollm"] == ["in", "Ġ", "1", "7", "3", "2"]


@pytest.mark.parametrize(("pre", "warns"), [("superbpe", True), ("gpt-2", False), ("qwen2", False)])
def test_a_rule_that_is_not_known_is_warned_of(tmp_path: Path, pre: str, warns: bool) -> None:
    path = write_gguf(tmp_path / "x.gguf", make_model("llama"), pre=pre)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(path)
    said = [str(one.message) for one in caught if "splits text by the rule" in str(one.message)]
    assert len(said) == warns
    assert all("x.gguf" in one and f"'{pre}'" in one for one in said)


def test_what_lies_beside_the_file_is_not_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", make_model("llama"))
    before = load_model(path)(TOKENS)
    (tmp_path / "config.json").write_text("not json")
    (tmp_path / "tokenizer_config.json").write_text("not json")
    assert torch.equal(load_model(path)(TOKENS), before)


# ---- what is wrong with a file -------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    path = write_gguf(tmp_path_factory.mktemp("good") / "x.gguf", make_model("llama"))
    return path.read_bytes()


def refused(path: Path, message: str) -> None:
    for read in (load_model, model_info):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            read(path)
        assert len(str(error.value)) < 700
        assert "\n" not in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.gguf"
    refused(path, "there is no file .*x.gguf")
    path.write_bytes(b"PK\3\4" + good[4:])
    refused(path, "x.gguf is not a GGUF file")
    path.write_bytes(b"")
    refused(path, "x.gguf is not a GGUF file")


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, good: bytes, share: float) -> None:
    (tmp_path / "x.gguf").write_bytes(good[: int(share * len(good))])
    refused(tmp_path / "x.gguf", "x.gguf is cut off or damaged")


def changed(good: bytes, after: bytes, format: str, value: int, *, skip: int = 0) -> bytes:
    """The file with one number changed that follows a name."""
    place = good.index(after) + len(after) + skip
    new = struct.pack(format, value)
    return good[:place] + new + good[place + len(new) :]


@pytest.mark.parametrize(
    ("after", "format", "value", "skip", "message"),
    [
        (b"GGUF", "<I", 1, 0, "its version is 1"),
        (b"GGUF", ">I", 3, 0, "with the lowest byte first"),
        (b"GGUF", "<Q", 2**60, 4, "cut off or damaged"),
        (b"GGUF", "<Q", 2**60, 12, "cut off or damaged"),
        # The length of the list of tokens, behind the types of list and elements.
        (b"tokenizer.ggml.tokens", "<Q", 2**60, 8, "cut off or damaged"),
        (b"tokenizer.ggml.token_type", "<Q", 2**62, 8, "cut off or damaged"),
        (b"blk.0.attn_q.weight", "<I", 9, 0, "has 9 dimensions"),
        (b"blk.0.attn_q.weight", "<Q", 2**40, 4, "ends at byte"),
        (b"blk.0.attn_q.weight", "<I", 77, 20, "attn_q.weight' has the type 77"),
        (b"llama.embedding_length", "<I", 10**7, 4, "hidden_size is 10000000, but the weights in"),
        (b"llama.attention.head_count", "<I", 0, 4, "transformers cannot read its config"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, good: bytes, after: bytes, format: str, value: int, skip: int, message: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(changed(good, after, format, value, skip=skip))
    refused(tmp_path / "x.gguf", message)


def test_weights_that_do_not_fit_the_config_are_named(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(changed(good, b"llama.embedding_length", "<I", 64, skip=4))
    with pytest.raises(ValueError, match=r"weight is \[32\] in the file, \[64\] by the config"):
        load_model(path)


def test_an_architecture_that_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", make_model("llama"), architecture="wavenet")
    refused(path, "x.gguf: transformers cannot read its config .*wavenet")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", make_model("llama"), left_out="blk.1.ffn_up.weight")
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight is missing"):
        load_model(path)
