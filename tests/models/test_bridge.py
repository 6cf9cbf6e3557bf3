"""TransformerBridge models through the same code as HookedTransformer's, and to the same numbers.

TransformerLens 4 has nothing else. Both classes are loaded from one Hugging Face folder.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from circuits.attribute import METHODS, attribution_patching
from circuits.discovery.find_circuits import discover
from circuits.gate.density import measure_density
from circuits.gate.gate import add_gate, gates, is_gated
from circuits.intervene.ablate import run_attention_edges, run_edges
from circuits.intervene.experiment import prepare_experiment
from circuits.models.load import copy_model, load_bridge, load_model
from circuits.models.saving import frozen_parameters, save_model
from circuits.results.discovery import DiscoverConfig
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.train import post_train
from circuits.tasks import get_task
from tests.helpers import (
    CountingStream,
    make_prompts,
    needs_hooked_transformer,
    teach,
    word_tokenizer,
)

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
CONFIGS["grouped"] = copy.deepcopy(CONFIGS["llama"])
CONFIGS["grouped"].num_key_value_heads = 2
BIAS = -0.2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def random_folder(path: Path, config: PretrainedConfig) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(path)
    return path


@pytest.fixture(params=CONFIGS, scope="module")
def folder(request, tmp_path_factory):
    return random_folder(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])


@pytest.fixture(params=[False, True], ids=["dense", "gated"])
def pair(request, folder):
    """The same model as a HookedTransformer and as a TransformerBridge."""
    models = load_model(folder), load_bridge(folder)
    return tuple(add_gate(model, BIAS) for model in models) if request.param else models


def experiments(pair, **options):
    prompts = make_prompts(pair[0])
    return [prepare_experiment(one, prompts, metric="logit_diff", **options) for one in pair]


# What is read of a model is all there in these two: joint and grouped weights, both norms, no gate
# and a gate. All others are held with one method and one ablation.
FURTHEST_APART = [("gpt2", False), ("grouped", True)]
OTHERS = [("gpt2", True), ("llama", False), ("llama", True), ("grouped", False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "pair", "ablation"),
    [(*one, ablation) for one in FURTHEST_APART for ablation in ("corrupted", "mean", "zero")]
    + [(*one, "corrupted") for one in OTHERS],
    indirect=["folder", "pair"],
)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "pair", "method"),
    [(*one, method) for one in FURTHEST_APART for method in sorted(METHODS)]
    + [(*one, "attribution_patching") for one in OTHERS],
    indirect=["folder", "pair"],
)
def test_scores_agree(pair, method):
    hooked, bridge = (METHODS[method](one) for one in experiments(pair))
    torch.testing.assert_close(bridge.edges, hooked.edges, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bridge.nodes, hooked.nodes, atol=1e-5, rtol=1e-4)
    for template, scores in hooked.attention_edges.items():
        torch.testing.assert_close(bridge.attention_edges[template], scores, atol=1e-5, rtol=1e-4)


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


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["all weights", "low rank"])
def test_a_trained_bridge_is_saved_with_what_it_computes(folder, tmp_path, options):
    dense = load_bridge(folder)
    teach(dense, CountingStream(), frozen=frozen_parameters(dense))
    tokens = torch.randint(2, 30, (4, 12))
    before = dense(tokens)
    config = TrainConfig(
        steps=3, batch_size=4, learning_rate=1e-2, slack=100.0, evaluate_every=1,
        control_every=1, control_sequences=4, selection_sequences=4, **options,
    )  # fmt: skip
    result = post_train(
        dense, CountingStream(), config, tmp_path / "run",
        frozen=frozen_parameters(dense), progress=False,
    )  # fmt: skip
    assert torch.equal(dense(tokens), before)
    dense_again, sparse = result.model(tokens), tmp_path / "sparse"
    assert not torch.allclose(dense_again, before, atol=1e-3)
    save_model(result.model, sparse)
    # To the bit in its own class, but for rounding in the other.
    assert torch.equal(load_bridge(sparse)(tokens), dense_again)
    torch.testing.assert_close(load_model(sparse)(tokens), dense_again, atol=1e-4, rtol=1e-4)


def test_what_a_bridge_holds_and_does_not_use_is_frozen(folder):
    bridge = load_bridge(folder)
    joint = {name for name, _ in bridge.named_parameters() if ".qkv." in name}
    assert bool(joint) == folder.name.startswith("gpt2")
    # TransformerLens 3 makes up a bias for the unembedding and leaves it out.
    assert {name for name in frozen_parameters(bridge) if "lm_head" not in name} == joint
    # Neither flags nor a graph are left behind.
    assert all(parameter.requires_grad for parameter in bridge.parameters())
    copy_model(bridge)


def test_a_copy_notes_what_it_reads_itself(folder):
    bridge = load_bridge(folder)

    def scores(model):
        experiment = prepare_experiment(model, make_prompts(model), metric="logit_diff")
        return attribution_patching(experiment).edges

    expected, copied = scores(bridge), copy_model(bridge)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(1.1)
    assert not torch.allclose(scores(copied), expected, atol=1e-4)
    torch.testing.assert_close(scores(bridge), expected)
    del bridge
    assert scores(copied).isfinite().all()


NEOX = GPTNeoXConfig(
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=32,
    **SIZES,
)
QWEN2 = Qwen2Config.from_dict(CONFIGS["grouped"].to_dict() | {"model_type": "qwen2"})


@needs_hooked_transformer
@pytest.mark.parametrize(
    "config", [*CONFIGS.values(), NEOX, QWEN2], ids=[*CONFIGS, "neox", "qwen2"]
)
def test_a_checkpoint_of_hooked_weights_gives_the_same_bridge(tmp_path, config):
    folder = random_folder(tmp_path, config)
    hooked = load_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(hooked.state_dict(), folder / "final.pth")
    raw = json.loads((folder / "config.json").read_text()) | {"use_sparse_attn": True}
    (folder / "config.json").write_text(json.dumps(raw))
    tokens = torch.randint(2, 30, (4, 12))
    expected = add_gate(hooked)(tokens)
    torch.testing.assert_close(load_bridge(folder)(tokens), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_discovery_finds_the_same_circuits(small_pair, name):
    config = DiscoverConfig(n_prompts=10, granularities=("head", "mlp"), redraws=2)
    models = [load(getattr(small_pair, name)) for load in (load_model, load_bridge)]
    found = [discover(model, get_task("subject_verb"), config).circuits for model in models]
    for granularity in config.granularities:
        one, other = (result[granularity].circuit for result in found)
        assert (one.heads, one.mlps) == (other.heads, other.mlps)


def test_a_model_that_hooked_transformer_computes_with_can_be_saved(tmp_path):
    config = GemmaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **SIZES,
    )
    bridge = load_bridge(random_folder(tmp_path / "gemma", config))
    frozen = frozen_parameters(bridge)
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            if name not in frozen:
                parameter.add_(0.05 * torch.randn_like(parameter))
    tokens = torch.randint(2, 30, (4, 12))
    save_model(bridge, tmp_path / "saved")
    assert torch.equal(load_bridge(tmp_path / "saved")(tokens), bridge(tokens))


def test_attention_that_only_shows_its_scores_is_refused_a_gate(tmp_path):
    config = GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=4, max_position_embeddings=32, **SIZES,
    )  # fmt: skip
    model = load_bridge(random_folder(tmp_path, config))
    with pytest.raises(ValueError, match="no gate can be put on GPTNeo.*does not compute its scor"):
        add_gate(model)
    assert not is_gated(model)
