"""Loading and saving: files give back the model, and refuse to give back another one."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from circuits.gate.card import GateCard
from circuits.gate.gate import add_gate, gate_bias, is_gated
from circuits.models import bridge
from circuits.models import names as finding
from circuits.models.backend import Model, backend_of, component_hooks
from circuits.models.hf_files import HFSource
from circuits.models.info import model_info
from circuits.models.load import as_model, from_hf, load_model, named_weights, versions
from circuits.models.saving import check_saveable, frozen_parameters, save_model
from tests.helpers import END, make_tiny_model, needs_hooked_transformer, word_tokenizer

TOKENS = torch.tensor([[0, 5, 9, 3, 22, 7, 2, 14], [0, 1, 1, 28, 6, 6, 19, 4]])
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 30}
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **SPECIAL),
    "llama": LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        **SPECIAL,
    ),
    "neox": GPTNeoXConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        **SPECIAL,
    ),
    "neo": GPTNeoConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=32,
        **SPECIAL,
    ),
    "qwen2": Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        **SPECIAL,
    ),
}
ALL = pytest.mark.parametrize("kind", CONFIGS)


def random_hf_model(config: PretrainedConfig) -> PreTrainedModel:
    """Returns a random model, no two parameters alike, with large enough weights to matter."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def hf_folder(folder: Path, kind: str = "gpt2") -> Path:
    random_hf_model(CONFIGS[kind]).save_pretrained(folder)
    word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(folder)
    return folder


def hf_logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)(TOKENS).logits


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def train_a_little(model: Model) -> None:
    """Moves every parameter that may move, so embeddings drift apart."""
    frozen = frozen_parameters(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in frozen:
                parameter.add_(0.05 * torch.randn_like(parameter))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- loading a folder ----------------------------------------------------------------------


@ALL
def test_a_folder_gives_the_logits_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = hf_folder(tmp_path / "m", kind)
    model = load_model(folder)
    assert not model.training and not is_gated(model)
    # Two implementations in float32: they differ by rounding only.
    torch.testing.assert_close(logits(model), hf_logits(folder), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "words", ["llama-7b", "gemma-2-2b", "meta-llama/Llama-2-7b", "bert", "t5", "wav2vec2-base"]
)
def test_the_name_of_a_folder_does_not_choose_the_architecture(tmp_path: Path, words: str) -> None:
    folder = hf_folder(tmp_path / words)
    assert model_info(folder).architecture == "GPT2LMHeadModel"
    torch.testing.assert_close(logits(load_model(folder)), hf_logits(folder), atol=1e-4, rtol=0)


def test_the_weights_are_not_processed(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    hf_model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model: Any = load_model(folder)
    assert torch.equal(model.W_E, hf_model.transformer.wte.weight)
    assert torch.equal(model.blocks[1].ln2.w, hf_model.transformer.h[1].ln_2.weight)
    assert model.cfg.normalization_type == "LN"


def test_loading_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = Mock(side_effect=AssertionError("the network was asked"))
    folder = hf_folder(tmp_path / "m")
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert load_model(folder).tokenizer is not None


def test_text_gets_one_begin_token(tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "m", "neox"))
    assert model.cfg.default_prepend_bos
    assert model.to_str_tokens("w3 w1") == [END, "w3", "w1"]
    assert model.to_tokens(["w3 w1", "w2"]).tolist() == [[0, 5, 3], [0, 4, 1]]
    assert model.to_tokens("w3 w1", prepend_bos=False).tolist() == [[5, 3]]


def test_a_folder_without_tokenizer_takes_tokens(tmp_path: Path) -> None:
    random_hf_model(CONFIGS["gpt2"]).save_pretrained(tmp_path / "m")
    model = load_model(tmp_path / "m")
    assert model.tokenizer is None
    assert logits(model).shape == (2, 8, 30)


def test_bfloat16_files_are_read_in_float32_or_as_they_are(tmp_path: Path) -> None:
    random_hf_model(CONFIGS["gpt2"]).bfloat16().save_pretrained(tmp_path / "m")
    full, half = load_model(tmp_path / "m"), load_model(tmp_path / "m", dtype=torch.bfloat16)
    assert full.W_E.dtype == torch.float32 and half.W_E.dtype == torch.bfloat16
    assert torch.equal(full.W_E, half.W_E.float())
    assert full.cfg.dtype == torch.float32 and half.cfg.dtype == torch.bfloat16


def test_a_gate_file_makes_the_model_sparse(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    dense = logits(load_model(folder))
    GateCard(bias=-0.25).save(folder)
    model = load_model(folder)
    assert gate_bias(model) == -0.25
    assert "blocks.1.attn.hook_gate" in model.hook_dict
    assert not torch.allclose(logits(model), dense, atol=1e-2)


def test_a_model_in_memory_is_converted_without_the_hub() -> None:
    hf_model = random_hf_model(CONFIGS["gpt2"]).train()
    tokenizer = word_tokenizer(f"w{n}" for n in range(28))
    model = from_hf(hf_model, tokenizer)
    if backend_of(model) is not bridge:  # which wraps the caller's model
        assert hf_model.training
    assert all(p.requires_grad for p in hf_model.parameters())
    assert tokenizer("w0").input_ids == [2]  # the caller's tokenizer is left alone
    assert model.to_tokens("w0").tolist() == [[0, 2]]
    check_saveable(model)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gtp2", ValueError, r"unknown model 'gtp2'; .* dense, sparse, .*mean 'gpt2'\?"),
        ("sprase", ValueError, r"did you mean 'sparse'"),
        ("qqqqqqqq", ValueError, r"is a folder, a GGUF file or a hub name$"),
        ("./nowhere", FileNotFoundError, r"there is no folder './nowhere'"),
        ("/no/such/model", FileNotFoundError, r"there is no folder '/no/such/model'"),
    ],
)
def test_an_unknown_name_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(name)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "", "cpu:1"])
def test_an_unavailable_device_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"device .* is not available; available: \['cpu'"):
        load_model("dense", device=device)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float32 or torch.bfloat16, got torch.float16"):
        load_model("dense", dtype=torch.float16)


def test_a_hub_that_cannot_be_reached_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = Mock(side_effect=OSError("We couldn't connect\nto the hub"))
    monkeypatch.setattr(finding, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'no/model' .*\(We couldn't connect\); check"):
        load_model("no/model")
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'gpt2' .* download it elsewhere and give its"):
        load_model("gpt2")


def test_a_missing_embedded_model_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.resources.files", Mock(return_value=tmp_path))
    with pytest.raises(FileNotFoundError, match="'sparse' is missing from this installation"):
        load_model("sparse")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        load_model(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    with pytest.raises(ValueError, match="is a file; give the model's folder"):
        load_model(folder / "model.safetensors")


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    edit_json(folder / "config.json", n_embd=24)
    with pytest.raises(ValueError, match=r"transformer.h.0.attn.c_attn.bias is \[48\] in the fil"):
        load_model(folder)
    with pytest.raises(ValueError, match=r"\[72\] by the config; .*; and 2\d more"):
        load_model(folder)


def test_missing_and_superfluous_weights_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    edit_json(folder / "config.json", n_layer=3)
    with pytest.raises(ValueError, match="transformer.h.2.attn.c_attn.bias is missing from the f"):
        load_model(folder)
    edit_json(folder / "config.json", n_layer=1)
    with pytest.raises(ValueError, match="transformer.h.1.attn.c_attn.weight is not in the m"):
        load_model(folder)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ValueError, match="model.safetensors cannot be read .* cut off or damaged"):
        load_model(folder)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: it must hold model.safetens"):
        load_model(folder)


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "gp')
    with pytest.raises(ValueError, match="config.json is not readable as JSON"):
        load_model(folder)


@pytest.mark.parametrize("model_type", ["gtp2", "vit"])
def test_an_unknown_model_type_is_refused(tmp_path: Path, model_type: str) -> None:
    folder = hf_folder(tmp_path / "m")
    edit_json(folder / "config.json", model_type=model_type)
    with pytest.raises(ValueError, match=f"model_type '{model_type}', which is not a causal lang"):
        load_model(folder)


@needs_hooked_transformer
def test_an_architecture_unknown_to_transformer_lens_is_refused(tmp_path: Path) -> None:
    gemma = GemmaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    gemma.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json: GemmaForCausalLM, which TransformerLens ca"):
        load_model(tmp_path)


@needs_hooked_transformer
def test_a_setting_that_transformer_lens_ignores_is_noticed() -> None:
    config = copy.deepcopy(CONFIGS["neox"])
    config.rope_parameters |= {"rope_theta": 100.0, "partial_rotary_factor": 1.0}
    with pytest.raises(ValueError, match=r"computes 'odd' differently from transformers \(logits"):
        from_hf(random_hf_model(config), None, name="odd")


def test_weights_with_nan_are_refused() -> None:
    hf_model: Any = random_hf_model(CONFIGS["gpt2"])
    with torch.no_grad():
        hf_model.transformer.wte.weight[3] = float("nan")
    with pytest.raises(ValueError, match="or the weights hold NaN"):
        from_hf(hf_model, None)


# ---- published checkpoints -----------------------------------------------------------------


def hooked_weights(model: Model) -> dict[str, torch.Tensor]:
    """What a checkpoint holds: of a HookedTransformer, its masks too."""
    return named_weights(model) if backend_of(model) is bridge else model.state_dict()


def published(folder: Path, **config: Any) -> HookedTransformer:
    """Writes a checkpoint in HookedTransformer's own form and returns the model in it."""
    folder.mkdir()
    model = make_tiny_model(seed=3)
    names = [
        "n_layers",
        "n_heads",
        "d_model",
        "d_head",
        "d_mlp",
        "d_vocab",
        "n_ctx",
        "act_fn",
        "normalization_type",
    ]
    cfg = {name: getattr(model.cfg, name) for name in names} | {"dtype": "torch.float32"}
    (folder / "config.json").write_text(json.dumps(cfg | config))
    torch.save(hooked_weights(model), folder / "final.pth")
    return model


@pytest.mark.parametrize(
    ("name", "config", "bias"),
    [
        ("SparseGPT2", {}, 0.0),
        ("checkpoint", {}, None),
        ("DenseTinystories", {}, None),
        ("DenseTinystories", {"sparse_attention": True}, 0.0),
        ("SparseGPT2", {"attention_type": "dense"}, None),
        ("SparseGPT2", {"gate_bias": 0.5}, 0.5),
    ],
)
def test_a_published_checkpoint_is_gated_by_rule(
    tmp_path: Path, name: str, config: dict[str, Any], bias: float | None
) -> None:
    expected = published(tmp_path / name, **config)
    if bias is not None:
        add_gate(expected, bias)
    model = load_model(tmp_path / name)
    assert is_gated(model) == (bias is not None)
    assert torch.equal(logits(model), logits(expected))
    gate = model_info(tmp_path / name).gate
    assert (gate and gate.bias) == bias


def test_a_published_checkpoint_with_a_gpt2_config_may_pad_its_vocabulary(tmp_path: Path) -> None:
    source = from_hf(random_hf_model(CONFIGS["gpt2"]), None)
    CONFIGS["gpt2"].save_pretrained(tmp_path / "SparseGPT2")
    edit_json(tmp_path / "SparseGPT2/config.json", vocab_size=27)
    word_tokenizer(["a"]).save_pretrained(tmp_path / "SparseGPT2")
    torch.save(hooked_weights(source), tmp_path / "SparseGPT2/final.pth")
    model = load_model(tmp_path / "SparseGPT2")
    assert model.cfg.d_vocab == 30 and is_gated(model)
    save_model(model, tmp_path / "again")
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(model))


def test_a_published_checkpoint_must_fit_its_config(tmp_path: Path) -> None:
    published(tmp_path / "m", d_mlp=31)
    with pytest.raises(
        ValueError, match=r"final.pth does not fit.* blocks.0.mlp.W_in is \[16, 32\], \[16, 31\]"
    ):
        load_model(tmp_path / "m")
    published(tmp_path / "n", n_layers=1)
    with pytest.raises(ValueError, match="blocks.1.attn.W_K is not in the model"):
        load_model(tmp_path / "n")


def test_a_config_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    published(tmp_path / "m")
    (tmp_path / "m/config.json").write_text('{"n_layers": 2}')
    with pytest.raises(ValueError, match=r"lacks \['d_head', 'd_model', 'n_ctx'\]"):
        load_model(tmp_path / "m")


class Code:
    """Something that a safe reader must not build."""


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    published(tmp_path / "m")
    torch.save({"embed.W_E": Code()}, tmp_path / "m/final.pth")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_model(tmp_path / "m")


# ---- saving --------------------------------------------------------------------------------


@ALL
def test_saving_after_training_gives_back_the_same_logits_to_the_bit(
    tmp_path: Path, kind: str
) -> None:
    model = load_model(hf_folder(tmp_path / "m", kind))
    train_a_little(model)
    save_model(model, tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved")), logits(model))
    torch.testing.assert_close(hf_logits(tmp_path / "saved"), logits(model), atol=1e-4, rtol=0)
    tied = json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"]
    # Trained apart in a HookedTransformer, and one and the same in a TransformerBridge.
    assert tied is (backend_of(model) is bridge and kind in ("gpt2", "neo"))


def test_untrained_weights_are_saved_as_they_were_read(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    save_model(load_model(folder), tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is True
    old, new = folder / "model.safetensors", tmp_path / "saved/model.safetensors"
    assert new.stat().st_size == old.stat().st_size
    assert torch.equal(hf_logits(tmp_path / "saved"), hf_logits(folder))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert tokenizer("w0 w1").input_ids == [2, 3]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_gated_model_survives_saving(tmp_path: Path, kind: str) -> None:
    model = add_gate(load_model(hf_folder(tmp_path / "m", kind)), 0.1)
    train_a_little(model)
    card = GateCard(bias=0.1, tau=1.2, ce=1.1, satisfied=True, training={"seed": 3})
    save_model(model, tmp_path / "saved", gate=card)
    again = load_model(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    assert GateCard.load(tmp_path / "saved") == card
    save_model(copy.deepcopy(again), tmp_path / "twice")
    assert gate_bias(load_model(tmp_path / "twice")) == 0.1


def test_the_bridge_loads_a_saved_folder(tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "m"))
    train_a_little(model)
    save_model(model, tmp_path / "saved")
    bridge = TransformerBridge.boot_transformers(str(tmp_path / "saved"), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(bridge(TOKENS), logits(model), atol=1e-4, rtol=0)


def test_bfloat16_halves_the_file(tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "m"))
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "half", dtype=torch.bfloat16)
    full, half = (load_model(tmp_path / name) for name in ("full", "half"))
    assert torch.equal(half.W_E, full.W_E.bfloat16().float())
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]


@needs_hooked_transformer
@pytest.mark.parametrize(
    ("kind", "some", "n_frozen"),
    # Llama and the others: b_K, b_V, b_Q, b_O, MLP b_in and b_out in each of 2 layers, and b_U.
    [
        ("gpt2", "unembed.b_U", 1),
        ("llama", "blocks.1.attn._b_K", 13),
        ("neox", "unembed.b_U", 1),
        ("neo", "blocks.0.attn.b_V", 7),
        ("qwen2", "blocks.0.attn.b_O", 7),
    ],
)
def test_what_transformers_has_no_place_for_is_frozen(kind: str, some: str, n_frozen: int) -> None:
    frozen = frozen_parameters(from_hf(random_hf_model(CONFIGS[kind]), None))
    assert some in frozen and len(frozen) == n_frozen


@needs_hooked_transformer
def test_a_changed_frozen_parameter_is_refused(tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "m"))
    with torch.no_grad():
        model.unembed.b_U += 1
    with pytest.raises(ValueError, match="must keep .* changed: unembed.b_U; leave frozen_param"):
        save_model(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@needs_hooked_transformer
def test_a_conversion_that_computes_is_refused() -> None:
    gemma = GemmaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **SPECIAL,
    )
    gemma.architectures = ["GemmaForCausalLM"]
    model: Any = make_tiny_model(
        n_layers=1,
        n_key_value_heads=1,
        normalization_type="RMS",
        gated_mlp=True,
        positional_embedding_type="rotary",
        original_architecture="GemmaForCausalLM",
    )
    model.hf_source = HFSource(gemma, None)
    with pytest.raises(ValueError, match="embed.W_E' from the weights of GemmaForCausalLM instead"):
        check_saveable(model)


@needs_hooked_transformer
def test_a_model_without_counterpart_cannot_be_saved(tiny_model: HookedTransformer) -> None:
    with pytest.raises(ValueError, match="'custom' has no Hugging Face counterpart"):
        check_saveable(tiny_model)


def test_a_card_must_fit_the_model(tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "m"))
    with pytest.raises(ValueError, match="the model has no gate"):
        save_model(model, tmp_path / "saved", gate=GateCard())
    with pytest.raises(ValueError, match=r"bias 1.0, the model's gate 0.0"):
        save_model(add_gate(model), tmp_path / "saved", gate=GateCard(bias=1.0))


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "m"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds more than a model \(chapter.tex\)"):
        save_model(model, tmp_path / "thesis")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        save_model(model, tmp_path / "file")


def test_an_older_model_is_replaced_whole(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    GateCard().save(folder)
    model = load_model(tmp_path / "m")
    train_a_little(model)
    save_model(model, folder)
    assert torch.equal(logits(load_model(folder)), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hf_folder(tmp_path / "m")
    model = load_model(folder)
    before = logits(model)
    train_a_little(model)
    disk_full = Mock(side_effect=OSError("no space left on device"))
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_model(model, folder)
    assert torch.equal(logits(load_model(folder)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# ---- cards, hooks, information -------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau": float("nan")}, "tau must be finite, got nan"),
        ({"density": {"overall": 1.5}}, r"density: overall must be in \[0, 1\], got 1.5"),
        (
            {"density": {"overall": 0.1, "per_layer": [2.0]}},
            r"per_layer must be in \[0, 1\], got 2.0",
        ),
        (
            {"density": {"overall": 0.1}},
            "context must be a whole number of tokens, 1 or more, got No",
        ),
    ],
)
def test_an_impossible_card_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateCard(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"must hold a JSON object, got the list \[1\]"),
        ("{", "is not readable as JSON"),
        ('{"bais": 0}', r"unknown entries \['bais'\]; known are \['bias'"),
        ("{}", "lacks the entry 'bias'"),
        ('{"bias": "0"}', "gate.json: bias must be a number, got '0'"),
        ('{"bias": true}', "bias must be a number, got True"),
        ('{"bias": null}', "bias must be a number, got None"),
        ('{"bias": 0, "satisfied": "yes"}', "satisfied must be true or false, got 'yes'"),
        ('{"bias": 0, "training": [1]}', r"training must be an object, got the list \[1\]"),
    ],
)
def test_a_bad_gate_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        GateCard.load(tmp_path)


def test_whole_numbers_in_a_gate_file_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "gate.json").write_text('{"bias": 0, "tau": 1, "ce": null, "density": null}')
    assert GateCard.load(tmp_path) == GateCard(bias=0.0, tau=1.0)


def test_a_card_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GateCard().bias = 1.0  # pyright: ignore


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_component_hooks_appear_and_change_no_logits(kind: str) -> None:
    model = from_hf(random_hf_model(CONFIGS[kind]), None)
    plain = logits(model)
    with component_hooks(model):
        out, cache = model.run_with_cache(TOKENS)
        shape = (2, 8, model.cfg.n_heads, model.cfg.d_model)
        for name in ("hook_q_input", "hook_k_input", "hook_v_input"):
            assert cache[f"blocks.0.{name}"].shape == shape
        assert cache["blocks.1.hook_mlp_in"].shape == (2, 8, model.cfg.d_model)
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=0)


def test_component_hooks_restore_what_was_set(tiny_model: HookedTransformer) -> None:
    tiny_model.set_use_hook_mlp_in(True)
    with pytest.raises(KeyError, match="inside"), component_hooks(tiny_model):
        assert tiny_model.cfg.use_split_qkv_input
        assert not getattr(tiny_model.cfg, "ungroup_grouped_query_attention", False)
        raise KeyError("inside")
    assert not tiny_model.cfg.use_split_qkv_input
    assert tiny_model.cfg.use_hook_mlp_in


@ALL
def test_model_info_tells_what_loading_would(tmp_path: Path, kind: str) -> None:
    folder = hf_folder(tmp_path / "m", kind)
    hf_model = AutoModelForCausalLM.from_pretrained(folder)
    model = load_model(folder)  # without a gate, which not every TransformerBridge takes
    GateCard(bias=0.5).save(folder)
    (folder / "model.safetensors").unlink()
    info = model_info(folder)
    assert info.architecture == type(hf_model).__name__
    assert (info.n_layers, info.n_heads) == (model.cfg.n_layers, model.cfg.n_heads)
    assert (info.d_model, info.n_ctx, info.d_vocab) == (model.cfg.d_model, 32, 30)
    assert info.n_parameters == hf_model.num_parameters()
    assert info.gate == GateCard(bias=0.5)


def test_model_info_counts_a_published_checkpoint(tmp_path: Path) -> None:
    model = published(tmp_path / "m")
    info = model_info(tmp_path / "m")
    assert info.architecture == "HookedTransformer"
    assert info.n_parameters == sum(p.numel() for p in named_weights(model).values())


def test_versions_name_what_decides_a_result() -> None:
    assert set(versions()) == {"python", "torch", "transformer_lens", "transformers", "circuits"}
    assert all(versions().values())


def test_a_tiny_model_with_words_reads_them() -> None:
    model = make_tiny_model(tokenizer=word_tokenizer(["to", "be"]))
    assert model.cfg.d_vocab == 4
    assert model.to_tokens("be to").tolist() == [[0, 3, 2]]


def test_a_model_may_be_given_by_name_as_itself_or_as_a_hugging_face_model(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    tokens = torch.arange(6)[None]
    by_name = as_model(folder)
    assert as_model(by_name) is by_name
    given = AutoModelForCausalLM.from_pretrained(folder)
    before = {name: weight.clone() for name, weight in given.state_dict().items()}
    torch.testing.assert_close(as_model(given)(tokens), by_name(tokens))
    assert as_model(given).tokenizer is not None
    assert list(given.state_dict()) == list(before)  # the one that is given stays as it was
    given.config.name_or_path = given.name_or_path = ""
    with pytest.raises(ValueError, match="made without a name.*from_hf"):
        as_model(given)
    with pytest.raises(ValueError, match="a Linear is not a model"):
        linear: Any = torch.nn.Linear(2, 2)
        as_model(linear)
