"""Architectures of TransformerBridges: the right gradients, or a refusal with the reason.

The referee of attribution patching gives every head inputs of its own and lets autograd find the
gradient there; the fast code follows it through the weights and the norm by hand.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from circuits.attribute import attribution_patching, exact_edge_effects
from circuits.gate.gate import add_gate
from circuits.graph import READS
from circuits.intervene.ablate import run_attention_edges
from circuits.intervene.activations import (
    logits_after,
    record_activations,
    run_to_final,
    source_outputs,
)
from circuits.intervene.experiment import Experiment, prepare_experiment
from circuits.metrics import METRICS
from circuits.models import anatomy
from circuits.models.backend import component_hooks
from circuits.models.load import load_bridge
from circuits.models.saving import save_model
from tests.helpers import make_prompts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TOKENS: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32} | TOKENS
LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
} | TOKENS
HEAD: dict[str, Any] = {"head_dim": 4}  # which some configs take and do not declare

KNOWN: dict[str, hf.PretrainedConfig] = {
    "GPT-2": hf.GPT2Config(**GPT),
    "Qwen 3": hf.Qwen3Config(head_dim=4, **LLAMA),
    "Gemma, whose norms multiply by 1 + w": hf.GemmaConfig(head_dim=4, **LLAMA),
    "Nemotron, whose layer norms do": hf.NemotronConfig(**LLAMA),
    "OLMo, clipped": hf.OlmoConfig(clip_qkv=0.3, **LLAMA),
    "GPT-NeoX": hf.GPTNeoXConfig(
        **{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    ),
    "Mixtral, a mixture of experts": hf.MixtralConfig(
        num_local_experts=4, num_experts_per_tok=2, **LLAMA
    ),
    "GPT-OSS, one with attention sinks": hf.GptOssConfig(
        head_dim=4, num_local_experts=4, num_experts_per_tok=2, **LLAMA
    ),
    "GLM 4, one with an expert for all tokens": hf.Glm4MoeConfig(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, **HEAD, **LLAMA
    ),
}
UNGROUPED: dict[str, Any] = {"num_key_value_heads": 4}
REFUSED: dict[str, tuple[hf.PretrainedConfig, str]] = {
    "OLMo 2 with shared keys": (
        hf.Olmo2Config(**LLAMA),
        "shares keys between heads and norms them together",
    ),
    "Granite": (
        hf.GraniteConfig(residual_multiplier=0.3, **LLAMA),
        "multiplies what its heads and MLPs write by 0.3",
    ),
    "Phi": (
        hf.PhiConfig(**(LLAMA | UNGROUPED)),
        "does not show blocks.0.hook_mlp_in, blocks.1.hook_mlp_in",
    ),
    "BitNet, which norms what heads have read": (
        hf.BitNetConfig(**LLAMA),
        "otherwise than by attention pattern and values",
    ),
    "Mamba": (
        hf.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **TOKENS),
        "does not show blocks.0.attn.hook_pattern",
    ),
    "JetMoE, which picks a head's queries as experts": (
        hf.JetMoeConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_key_value_heads=2,
            kv_channels=4,
            num_local_experts=4,
            num_experts_per_tok=2,
            **TOKENS,
        ),
        "_JetMoeAttentionBridge does not show the layers that make them",
    ),
    "OpenAI's first GPT, whose norms stand in the stream": (
        hf.OpenAIGPTConfig(**GPT),
        "does not show blocks.1.hook_resid_post",
    ),
    "GPT-J": (hf.GPTJConfig(rotary_dim=4, **GPT), "no inputs of single heads"),
}


def random_bridge(folder: Path, config: hf.PretrainedConfig) -> Any:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return load_bridge(folder)


def experiment_of(model: Any) -> Experiment:
    return prepare_experiment(model, make_prompts(model), metric="logit_diff")


def scores_by_autograd(experiment: Experiment) -> Tensor:
    """Edges into heads, each from the gradient at an input that only one head reads."""
    model, graph, prompts = experiment.model, experiment.graph, experiment.prompts
    inputs: dict[str, Tensor] = {}

    def note(act: Tensor, hook: object, *, name: str) -> Tensor:
        inputs[name] = act
        return act

    names = [f"blocks.{n}.hook_{read}_input" for n in range(graph.n_layers) for read in READS]
    hooks: list[Any] = [("blocks.0.hook_resid_pre", lambda act, hook: act.requires_grad_())]
    hooks += [(name, partial(note, name=name)) for name in names]
    with component_hooks(model):
        logits = logits_after(model, run_to_final(model, prompts.clean, hooks), prompts.last)
        total = METRICS["logit_diff"](logits, prompts, logits.detach()).sum()
        found = torch.autograd.grad(total, [inputs[name] for name in names])
    acts = record_activations(model, graph, prompts.clean)
    change = source_outputs(model, graph, acts) - source_outputs(model, graph, experiment.ablated)
    scores = torch.zeros(graph.mask.shape)
    for name, slope in zip(names, found, strict=True):
        layer, read = int(name.split(".")[1]), name.split("_")[1]
        n_upstream = graph.n_upstream_of_heads(layer)
        columns = graph.read_destinations(layer, read)
        scores[:n_upstream, columns] = torch.einsum("sbpd,bphd->sh", change[:n_upstream], slope)
    return scores / len(prompts)


@pytest.mark.parametrize("name", KNOWN)
def test_gradients_at_head_inputs_are_those_of_autograd(tmp_path, name):
    experiment = experiment_of(random_bridge(tmp_path, KNOWN[name]))
    expected = scores_by_autograd(experiment)
    assert expected.abs().max() > 1e-2
    heads = expected != 0
    found = attribution_patching(experiment).edges
    torch.testing.assert_close(found[heads], expected[heads], atol=1e-5, rtol=1e-4)


def test_attention_edges_of_clipped_values_are_those_of_the_clipped(tmp_path):
    experiment = experiment_of(random_bridge(tmp_path, KNOWN["OLMo, clipped"]))
    (batch, pos), graph = experiment.prompts.clean.shape, experiment.graph
    kept = torch.ones(batch, graph.n_layers, graph.n_heads, pos, pos, dtype=torch.bool)
    torch.testing.assert_close(run_attention_edges(experiment, kept), experiment.full)


@pytest.mark.parametrize("name", [name for name in KNOWN if "one" in name or "experts" in name])
def test_routers_choose_anew_where_an_edge_is_taken_out(tmp_path, name):
    experiment = experiment_of(random_bridge(tmp_path, KNOWN[name]))
    model, prompts = experiment.model, experiment.prompts
    acts = record_activations(model, experiment.graph, prompts.clean)
    change = acts.embed - experiment.ablated.embed
    hooks: list[Any] = [("blocks.1.hook_mlp_in", lambda act, hook: act - change)]
    with component_hooks(model, split_heads=False), torch.no_grad():
        logits = model.run_with_hooks(prompts.clean, fwd_hooks=hooks)[:, -1]
    expected = (experiment.full - METRICS["logit_diff"](logits, prompts, logits)).mean()
    assert abs(expected) > 1e-4
    (found,) = exact_edge_effects(experiment, [experiment.graph.edge_index("input->m1")])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_edges_or_does_not_show_them_is_refused(tmp_path, name):
    config, reason = REFUSED[name]
    model = random_bridge(tmp_path / "odd-one", config)
    with pytest.raises(ValueError, match=f"odd-one.*{reason}|{reason}.*odd-one"):
        experiment_of(model)


@pytest.mark.parametrize(
    "config",
    [hf.Gemma2Config(head_dim=4, **LLAMA), hf.Exaone4Config(**LLAMA)],
    ids=["Gemma 2", "EXAONE 4"],
)
def test_a_stream_that_is_not_a_sum_is_noticed_without_a_row(tmp_path, monkeypatch, config):
    monkeypatch.setattr(anatomy, "NORMALISED_AFTER", ())
    model = random_bridge(tmp_path, config)
    with pytest.raises(ValueError, match="a residual stream that is not the sum of what heads"):
        experiment_of(model)


def test_logits_that_are_scaled_are_noticed(tmp_path):
    model = random_bridge(tmp_path, hf.GraniteConfig(logits_scaling=4.0, **LLAMA))
    with pytest.raises(ValueError, match="makes its logits otherwise than by its last norm"):
        experiment_of(model)


@pytest.mark.parametrize("name", [name for name in KNOWN if "norms" in name])
def test_a_norm_that_is_not_as_its_config_says_is_noticed(tmp_path, monkeypatch, name):
    model = random_bridge(tmp_path, KNOWN[name])
    experiment = experiment_of(model)
    monkeypatch.setattr(anatomy, "GAIN_FROM_ONE", ())
    monkeypatch.setattr(model.cfg, "rmsnorm_uses_offset", False)
    with pytest.raises(ValueError, match="norm before the heads of layer 0 of .* does not compute"):
        attribution_patching(experiment)


def test_a_model_without_layers_is_refused_when_it_is_loaded(tmp_path):
    config = hf.HrmTextConfig(**(LLAMA | UNGROUPED))
    with pytest.raises(ValueError, match="shows no layers .* of HrmTextForCausalLM"):
        random_bridge(tmp_path, config)


def test_numbers_that_are_no_weights_are_named_where_they_cannot_be_saved(tmp_path):
    model = random_bridge(tmp_path, hf.ApertusConfig(**LLAMA))
    with pytest.raises(
        ValueError, match=r"no weights \(model.layers.0.mlp.act_fn.*cannot be saved"
    ):
        save_model(model, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_attention_that_does_not_show_its_scores_takes_no_gate(tmp_path):
    model = random_bridge(tmp_path, KNOWN["GPT-NeoX"])
    del model.blocks[1].attn.hook_attn_scores
    with pytest.raises(ValueError, match="no gate can be put on .* does not show its scores"):
        add_gate(model)


def test_activations_of_another_shape_than_the_config_says_are_refused(tmp_path):
    model = random_bridge(tmp_path, KNOWN["GPT-NeoX"])
    model.cfg.d_head = 3
    with pytest.raises(
        ValueError, match=r"attn.hook_v in the shape \(1, 7, 4, 4\), not \(1, 7, 4, 3"
    ):
        experiment_of(model)
