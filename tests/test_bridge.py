"""TransformerBridge models through the same code as HookedTransformer's, and to the same numbers.

TransformerLens 4 has nothing else. Both classes are loaded from one Hugging Face folder.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from circuits.ablate import prepare_experiment, run_attention_edges, run_edges
from circuits.attribute import METHODS
from circuits.bridge import load_bridge
from circuits.discovery import DiscoverConfig
from circuits.find_circuits import discover
from circuits.gate import add_gate, gates, is_gated
from circuits.models import load_model
from circuits.open_edges import measure_density
from circuits.tasks import get_task
from tests.helpers import make_prompts, word_tokenizer

SIZES: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SIZES),
    "llama": LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        **SIZES,
    ),
}
BIAS = -0.2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=CONFIGS, scope="module")
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(path)
    return path


@pytest.fixture(params=[False, True], ids=["dense", "gated"])
def pair(request, folder):
    """The same model as a HookedTransformer and as a TransformerBridge."""
    models = load_model(folder), load_bridge(folder)
    return tuple(add_gate(model, BIAS) for model in models) if request.param else models


def experiments(pair, **options):
    prompts = make_prompts(pair[0])
    return [prepare_experiment(one, prompts, metric="logit_diff", **options) for one in pair]


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_whole_and_ablated_runs_agree(pair, ablation):
    hooked, bridge = experiments(pair, ablation=ablation)
    torch.testing.assert_close(bridge.full, hooked.full)
    # Zero ablation of a model without biases leaves rounding errors, which the last norm blows up.
    torch.testing.assert_close(bridge.empty, hooked.empty, atol=1e-3, rtol=1e-4)


def test_circuits_of_edges_agree(pair):
    hooked, bridge = experiments(pair)
    edges = torch.rand(hooked.graph.mask.shape) < 0.5
    torch.testing.assert_close(run_edges(bridge, edges), run_edges(hooked, edges))


def test_circuits_of_attention_edges_agree(pair):
    hooked, bridge = experiments(pair)
    cfg, (batch, pos) = pair[0].cfg, hooked.prompts.clean.shape
    kept = torch.rand(batch, cfg.n_layers, cfg.n_heads, pos, pos) < 0.5
    torch.testing.assert_close(run_attention_edges(bridge, kept), run_attention_edges(hooked, kept))


@pytest.mark.parametrize(
    "method",
    ["attribution_patching", "gradient_average", "integrated_gradients", "integrated_activations"],
)
def test_scores_agree(pair, method):
    hooked, bridge = (METHODS[method](one) for one in experiments(pair))
    torch.testing.assert_close(bridge.edges, hooked.edges, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bridge.nodes, hooked.nodes, atol=1e-5, rtol=1e-4)
    for template, scores in hooked.attention_edges.items():
        torch.testing.assert_close(bridge.attention_edges[template], scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["local_patching", "exact_patching"])
def test_methods_that_run_single_components_are_refused(pair, method):
    with pytest.raises(ValueError, match="which a TransformerBridge does not allow"):
        METHODS[method](experiments(pair)[1])


def test_grouped_keys_and_values_are_refused(tmp_path):
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_key_value_heads = 2
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(tmp_path)
    bridge = load_bridge(tmp_path)
    with pytest.raises(ValueError, match="shares keys and values between heads"):
        prepare_experiment(bridge, make_prompts(load_model(tmp_path)), metric="logit_diff")


def test_the_gate_opens_the_same_edges(folder):
    hooked, bridge = (add_gate(one, BIAS) for one in (load_model(folder), load_bridge(folder)))
    tokens = torch.randint(2, 30, (4, 12))
    assert is_gated(bridge)
    assert len(gates(bridge)) == 2
    found, expected = (
        measure_density(one, tokens, torch.ones_like(tokens)) for one in (bridge, hooked)
    )
    assert found.overall == expected.overall
    assert 0.1 < found.overall < 0.9
    torch.testing.assert_close(bridge(tokens), hooked(tokens), atol=1e-4, rtol=1e-4)


def test_the_gate_trains_on_a_bridge(folder):
    gated = add_gate(load_bridge(folder), BIAS).train()
    tokens = torch.randint(2, 30, (4, 12))
    torch.manual_seed(0)
    first = gated(tokens)
    assert not torch.equal(first, gated(tokens))  # The gate is drawn anew.
    first.logsumexp(-1).mean().backward()
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in gated.parameters()
    )


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_discovery_finds_the_same_circuits(name):
    config = DiscoverConfig(n_prompts=10, granularities=("head", "mlp"))
    models = load_model(name), load_bridge(name)
    found = [discover(model, get_task("ioi"), config).found for model in models]
    for granularity in config.granularities:
        one, other = (result[granularity].circuit for result in found)
        assert (one.heads, one.mlps) == (other.heads, other.mlps)


def test_a_folder_without_hugging_face_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="use circuits.load_model for other checkpoints"):
        load_bridge(tmp_path)
