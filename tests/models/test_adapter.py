"""Adapters: `peft` is the referee, which reads and writes them by its own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, OPTConfig

from circuits.gate.card import GateCard
from circuits.gate.gate import add_gate, gate_bias
from circuits.models.adapter import DIGEST, weights_digest
from circuits.models.adapter_updates import read_updates
from circuits.models.info import model_info
from circuits.models.load import copy_model, from_hf, load_bridge, load_model, named_weights
from circuits.models.save_adapter import LowRankUpdate, check_adapter, save_adapter
from circuits.sparsify.low_rank import (
    add_low_rank,
    low_rank_updates,
    merge_low_rank,
    set_updates,
    updated_weights,
)
from tests.helpers import needs_hooked_transformer, word_tokenizer
from tests.models.test_models import TOKENS, hf_folder, logits, random_hf_model

MODULES: dict[str, list[str]] = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": [*"q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()],
    "neox": ["query_key_value", "dense_4h_to_h"],
}


# peft 0.21 asks transformers 5 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def hf_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def adapter_by_peft(base: Path, folder: Path, modules: list[str], **options: Any) -> Path:
    """Saves a random adapter for the model in `base`; returns its folder."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=modules,
        init_lora_weights=False, fan_in_fan_out=modules[0].startswith("c_"), **options,
    )  # fmt: skip
    get_peft_model(hf_model(base), config).save_pretrained(str(folder))
    return folder


def peft_logits(base: Path, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(hf_model(base), folder)(TOKENS).logits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    base = hf_folder(folder / "base", "llama")
    adapter_by_peft(base, folder / "adapter", ["q_proj", "k_proj", "o_proj"])
    return folder


@pytest.fixture
def llama(made: Path, tmp_path: Path) -> Path:
    """An adapter for a Llama of two key-value heads, on its attention; the base lies next to it."""
    folder = shutil.copytree(made, tmp_path, dirs_exist_ok=True) / "adapter"
    edit(folder, base_model_name_or_path=str(tmp_path / "base"))
    return folder


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# ---- loading -------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_model, load_bridge])
@pytest.mark.parametrize("kind", MODULES)
def test_an_adapter_computes_what_peft_computes(kind, load, tmp_path) -> None:
    base = hf_folder(tmp_path / "base", kind)
    folder = adapter_by_peft(base, tmp_path / "adapter", MODULES[kind], use_rslora=kind == "neox")
    model = load(folder)
    expected = peft_logits(base, folder)
    assert not torch.allclose(logits(load(base)), expected, atol=1e-2)
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_the_scale_of_a_pattern_is_that_of_peft(tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base", "llama")
    patterns: dict[str, Any] = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 1},
        "alpha_pattern": {"q_proj": 1.5, "layers.0.mlp.down_proj": 9},
    }
    folder = adapter_by_peft(base, tmp_path / "adapter", ["q_proj", "down_proj"], **patterns)
    assert torch.allclose(logits(load_model(folder)), peft_logits(base, folder), atol=1e-5)


def test_the_gate_beside_an_adapter_is_put_on(llama: Path) -> None:
    without = load_model(llama)
    GateCard(bias=0.25).save(llama)
    model = load_model(llama)
    assert gate_bias(model) == 0.25
    assert torch.equal(logits(model), logits(add_gate(without, 0.25)))


def test_an_adapter_in_half_precision_is_added_in_float32(llama: Path) -> None:
    whole = load_model(llama)
    half = load_model(llama, dtype=torch.bfloat16)
    for one, other in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))


def test_what_is_known_of_an_adapter_is_what_is_known_of_its_base(llama: Path) -> None:
    GateCard(bias=0.5).save(llama)
    base, info = model_info(llama.parent / "base"), model_info(llama)
    assert info.base == str(llama.parent / "base")
    assert (info.n_parameters, info.n_heads, info.name) == (base.n_parameters, 4, str(llama))
    assert info.gate == GateCard(bias=0.5)


def test_a_base_can_be_given(llama: Path) -> None:
    base, moved = llama.parent / "base", llama.parent / "moved"
    expected = logits(load_model(llama))
    base.rename(moved)
    for ask in (load_model, model_info):
        with pytest.raises(FileNotFoundError, match=r"adapter of the model .*/base.*base=\.\.\."):
            ask(llama)
    assert torch.equal(logits(load_model(llama, base=moved)), expected)
    assert model_info(llama, base=moved).n_layers == 2
    edit(llama, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"names no base model; .* base=\.\.\."):
        load_model(llama)
    for ask in (load_model, model_info):
        with pytest.raises(ValueError, match="is not an adapter, so it has no base"):
            ask(moved, base=moved)


@needs_hooked_transformer  # a bridge gives a checkpoint's weights another digest: it is refused
def test_a_checkpoint_can_be_a_base(tmp_path: Path) -> None:
    """A base without Hugging Face files is taken the long way round, to the same model."""
    base, folder = hf_folder(tmp_path / "base"), tmp_path / "dense"
    adapter = adapter_by_peft(base, tmp_path / "adapter", ["c_attn"])
    (adapter / "base.json").write_text(json.dumps({DIGEST: weights_digest(hf_model(base))}))
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save(named_weights(load_model(base)), folder / "final.pth")
    found = load_model(adapter, base=folder)
    assert torch.allclose(logits(found), peft_logits(base, adapter), atol=1e-5)
    shutil.move(
        folder, tmp_path / "sparse-gpt2"
    )  # a checkpoint's name says what its config may not
    with pytest.raises(
        ValueError, match="sparse-gpt2 is gated; an adapter is put on a dense model"
    ):
        load_model(adapter, base=tmp_path / "sparse-gpt2")


def test_a_base_that_is_no_dense_model_is_refused(llama: Path) -> None:
    for base, why in ((llama, "is an adapter itself"), ("sparse", "sparse is gated")):
        for ask in (load_model, model_info):
            with pytest.raises(ValueError, match=why):
                ask(llama, base=base)


def test_other_weights_than_those_of_the_digest_are_refused(llama: Path) -> None:
    base = llama.parent / "base"
    (llama / "base.json").write_text(json.dumps({DIGEST: weights_digest(hf_model(base))}))
    load_model(llama)
    other = hf_folder(llama.parent / "other", "llama")
    with pytest.raises(ValueError, match="an adapter for other weights than those of .*/other"):
        load_model(llama, base=other)
    (llama / "base.json").write_text('{"weights_sha256": 5}')
    with pytest.raises(ValueError, match=r"base.json: weights_sha256 is 5; it must be text"):
        load_model(llama)


def test_a_base_of_other_shapes_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match="does not fit .* has no matrix model.layers.0.self_attn"):
        load_model(llama, base=hf_folder(llama.parent / "gpt2", "gpt2"))
    edit_weights(
        llama,
        lambda held: held.update({key: torch.ones(3, 8) for key in held if "q_proj.lora_A" in key}),
    )
    with pytest.raises(ValueError, match=r"q_proj has an update of \[32, 8\], \[32, 32\] in"):
        load_model(llama)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is read"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_dora": True}, "use_dora is True, by which peft computes more"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is the list"),
        ({"bias": "lora_only"}, "bias is 'lora_only'; only 'none' is read"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"of_a_later_peft": 1}, "of_a_later_peft is 1"),
        ({"revision": "abc"}, "revision is 'abc'"),
        ({"rank_pattern": {"^model.*q_proj": 3}}, "no regular expressions"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj are \[3, 32\] and \[32, 3\], but its rank is 2"),
        ({"r": 4}, "but its rank is 4 by adapter_config.json"),
        ({"r": 0}, "the rank of .* is 0; it must be at least 1"),
        ({"r": "3"}, "r must be a number"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
        ({"target_modules": ["q_proj", "k_proj"]}, "o_proj is not in target_modules"),
        ({"target_modules": ["q_proj", "k_proj", "o_proj", "up_proj"]}, "up_proj has no factors"),
        ({"target_modules": [1]}, "it must be a list of names"),
        ({"base_model_name_or_path": 1}, "base_model_name_or_path is 1"),
    ],
    ids=str,
)
def test_what_would_be_misread_is_refused(entries, message, llama) -> None:
    edit(llama, **entries)
    with pytest.raises(ValueError, match=message):
        load_model(llama)


def test_factors_that_are_missing_or_strange_are_refused(llama: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    held = load_file(llama / "adapter_model.safetensors")
    for message, changed in (
        ("q_proj has no lora_B", {k: t for k, t in held.items() if k != key}),
        ("not a factor of a matrix", held | {"base_model.model.lm_head.weight": torch.ones(2)}),
        ("a factor is a matrix of floats", held | {key: torch.ones(32)}),
        ("holds no factors", {}),
    ):
        save_file(changed, llama / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_model(llama)
    (llama / "adapter_model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="cut off or damaged"):
        load_model(llama)
    (llama / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*adapter_model.safetensors"):
        load_model(llama)


def test_a_folder_with_a_whole_model_as_well_is_refused(llama: Path) -> None:
    shutil.copy(llama.parent / "base" / "model.safetensors", llama)
    with pytest.raises(ValueError, match="holds both an adapter .* and a whole model"):
        load_model(llama)


def test_an_update_of_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    folder = adapter_by_peft(hf_folder(tmp_path / "base"), tmp_path / "adapter", ["c_fc"])
    names = (f"base_model.model.lm_head.lora_{part}.weight" for part in "AB")
    added = dict(zip(names, (torch.ones(3, 16), torch.ones(30, 3)), strict=True))
    edit_weights(folder, lambda held: held.update(added))
    edit(folder, target_modules=["c_fc", "lm_head"])
    with pytest.raises(ValueError, match="lm_head is the word embedding too"):
        load_model(folder)


# ---- saving --------------------------------------------------------------------------------


def updated(base: Any, targets: str = "all") -> tuple[Any, dict[str, LowRankUpdate]]:
    """Returns a copy of a model with random updates in its weights, and the updates."""
    model = copy_model(base)
    generator = torch.Generator().manual_seed(3)
    for weight in add_low_rank(model, 2, alpha=3.0, targets=targets).values():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    updates = low_rank_updates(model)
    merge_low_rank(model)
    return model.eval(), updates


@pytest.mark.parametrize("load", [load_model, load_bridge])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "qwen2"])
def test_a_saved_adapter_is_the_updated_model_here_and_in_peft(kind, load, tmp_path) -> None:
    base = hf_folder(tmp_path / "base", kind)
    dense = load(base)
    model, updates = updated(dense)
    folder = tmp_path / "adapter"
    save_adapter(dense, updates, folder)
    assert not torch.allclose(logits(model), logits(dense), atol=1e-2)
    assert torch.allclose(peft_logits(base, folder), logits(model), atol=1e-5)
    assert torch.allclose(logits(load_model(folder)), logits(model), atol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert json.loads((folder / "base.json").read_text())[DIGEST] == weights_digest(hf_model(base))


@pytest.mark.parametrize("load", [load_model, load_bridge])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_the_updates_of_a_saved_adapter_can_be_read_again(kind, load, tmp_path) -> None:
    dense = load(hf_folder(tmp_path / "base", kind))
    model, updates = updated(dense)
    save_adapter(dense, updates, tmp_path / "adapter")
    found = read_updates(dense, tmp_path / "adapter", updated_weights(dense))
    assert set(found) == set(updates)
    # All of attention and MLP, also where a path to them is the Hugging Face model's own.
    assert kind != "llama" or len(found) == 7 * dense.cfg.n_layers
    for name, update in updates.items():
        assert torch.equal(found[name].down, update.down) and torch.equal(found[name].up, update.up)
        assert found[name].scale == pytest.approx(update.scale)
    again = copy_model(dense)
    add_low_rank(again, 2, alpha=7.0)
    set_updates(again, found)
    merge_low_rank(again)
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


def test_an_mlp_that_its_model_gives_no_name_is_updated_too(tmp_path: Path) -> None:
    random_hf_model(
        OPTConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
            max_position_embeddings=32, word_embed_proj_dim=16,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(tmp_path)
    model = load_bridge(tmp_path)
    assert [len(updated_weights(model, part)) for part in ("attention", "mlp")] == [2 * 4, 2 * 2]


def test_an_adapter_of_peft_can_be_begun_with(llama: Path) -> None:
    dense = load_model(llama.parent / "base")
    found = read_updates(dense, llama, updated_weights(dense))
    assert len(found) == 3 * dense.cfg.n_layers
    model = copy_model(dense)
    add_low_rank(model, 3)
    set_updates(model, found)
    merge_low_rank(model)
    assert torch.allclose(logits(model), peft_logits(llama.parent / "base", llama), atol=1e-5)


def test_what_cannot_be_begun_with_is_refused(llama: Path, tmp_path: Path) -> None:
    dense = load_model(llama.parent / "base")
    names = updated_weights(dense)
    with pytest.raises(ValueError, match="updates that are not trained here .*--lora-targets all"):
        read_updates(dense, llama, [n for n in names if "W_O" not in n and "o_proj" not in n])
    model = copy_model(dense)
    add_low_rank(model, 2)
    with pytest.raises(ValueError, match="rank 3, but 2 is trained; let lora_rank .--lora-rank."):
        set_updates(model, read_updates(dense, llama, names))
    save_adapter(dense, updated(dense)[1], tmp_path / "own")
    edit_base = json.loads((tmp_path / "own/base.json").read_text()) | {DIGEST: "0" * 64}
    (tmp_path / "own/base.json").write_text(json.dumps(edit_base))
    with pytest.raises(ValueError, match="adapter for other weights"):
        read_updates(dense, tmp_path / "own", names)
    # One c_attn holds queries, keys and values, which peft updates by the same factors.
    gpt2 = hf_folder(tmp_path / "gpt2")
    joint = adapter_by_peft(gpt2, tmp_path / "joint", ["c_attn"])
    base = load_model(gpt2)
    with pytest.raises(ValueError, match="c_attn belong to queries, keys and values together"):
        read_updates(base, joint, updated_weights(base))


def test_updates_of_attention_alone_name_no_module_of_the_mlp(tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base")
    dense = load_model(base)
    model, updates = updated(dense, "attention")
    save_adapter(dense, updates, tmp_path / "adapter", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["attn.c_attn", "attn.c_proj"]
    assert config["fan_in_fan_out"] and config["r"] == 2
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    found = logits(load_model(tmp_path / "adapter"))
    assert torch.allclose(found, peft_logits(base, tmp_path / "adapter"), atol=1e-5)
    assert not torch.equal(found, logits(model))
    assert torch.allclose(found, logits(model), atol=0.2)


def test_a_gate_is_saved_and_the_folder_of_an_adapter_is_replaced(tmp_path: Path) -> None:
    dense = load_model(hf_folder(tmp_path / "base", "llama"))
    _, updates = updated(dense)
    folder = tmp_path / "adapter"
    save_adapter(dense, updates, folder, gate=GateCard(bias=0.5))
    assert gate_bias(load_model(folder)) == 0.5
    save_adapter(dense, updates, folder)
    assert not (folder / "gate.json").exists()
    (folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds more than a model .thesis.tex"):
        save_adapter(dense, updates, folder)


def test_what_cannot_be_an_adapter_is_refused_before_training(tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base")
    dense = load_model(base)
    check_adapter(dense, updated_weights(dense))
    embedding = next(n for n, held in dense.named_parameters() if held.shape == (30, 16))
    gain = next(n for n, held in dense.named_parameters() if held.shape == (16,))
    for name in (embedding, gain):
        with pytest.raises(ValueError, match=f"the update of {name} is not one of a single"):
            check_adapter(dense, [name])
    with pytest.raises(ValueError, match="the base model has no weight 'other'"):
        check_adapter(dense, ["other"])
    nameless = from_hf(hf_model(base), None)
    with pytest.raises(ValueError, match="give base_name"):
        check_adapter(nameless, updated_weights(nameless))
    check_adapter(nameless, updated_weights(nameless), base_name="someone/model")
    _, updates = updated(dense)
    save_adapter(dense, updates, tmp_path / "adapter")
    on_top = load_model(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter itself"):
        check_adapter(on_top, updated_weights(on_top))
