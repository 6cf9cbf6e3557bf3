import pickle

import pytest
import torch

from circuits.attribute import attribution_patching
from circuits.gate.density import measure_density, record_open_edges
from circuits.gate.gate import add_gate
from circuits.gate.top_k import add_top_k, is_top_k
from circuits.intervene.experiment import prepare_experiment
from circuits.models.load import copy_model, load_model
from circuits.models.saving import save_model
from tests.helpers import HAS_HOOKED_TRANSFORMER, make_prompts, make_tiny_model

TOKENS = torch.randint(0, 10, (3, 8), generator=torch.Generator().manual_seed(0))


def by_hand(scores, k):
    """The pattern of one query after the other: softmax over its k highest allowed scores."""
    pattern = torch.zeros_like(scores)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape[:3])).tolist():
        row = scores[tuple(place)]
        kept = [j for j in row.argsort(descending=True).tolist() if row[j] > -1e30][:k]
        pattern[tuple(place)][kept] = row[kept].softmax(dim=0)
    return pattern


@pytest.mark.parametrize("k", [1, 3, 100])
def test_every_query_keeps_its_k_highest_scores(k):
    model = make_tiny_model()
    _, dense = model.run_with_cache(TOKENS)
    masked = add_top_k(copy_model(model), k)
    _, sparse = masked.run_with_cache(TOKENS)
    name = "blocks.0.attn.hook_{}"
    scores = dense[name.format("attn_scores")]
    assert torch.allclose(sparse[name.format("pattern")], by_hand(scores, k))
    if k == 100:
        assert torch.equal(sparse["unembed.hook_in"], dense["unembed.hook_in"])


def test_the_density_counts_what_is_kept():
    model = add_top_k(make_tiny_model(), 2)
    density = measure_density(model, TOKENS)
    # Of 8 positions the first may see one, and every other keeps two.
    assert density.per_head.flatten().tolist() == pytest.approx([15 / 36] * 4)
    assert density.context == 8


def test_padding_is_not_counted():
    model = add_top_k(make_tiny_model(), 2)
    mask = torch.ones_like(TOKENS)
    mask[:, 5:] = 0
    assert measure_density(model, TOKENS, mask).overall == pytest.approx(9 / 15)


def test_hooks_copies_and_pickles_keep_the_mask():
    model = add_top_k(make_tiny_model(), 2)
    expected = model(TOKENS)
    model.reset_hooks()
    assert torch.equal(model(TOKENS), expected)
    with record_open_edges(model):
        twin = copy_model(model)
    assert torch.equal(twin(TOKENS), expected)
    if HAS_HOOKED_TRANSFORMER:  # A TransformerBridge holds local functions.
        assert torch.equal(pickle.loads(pickle.dumps(model))(TOKENS), expected)
    doubled = model.run_with_hooks(
        TOKENS, fwd_hooks=[("blocks.0.attn.hook_attn_scores", lambda s, hook: -s)]
    )
    assert not torch.equal(doubled, expected)


def test_scores_of_edges_follow_the_mask():
    model = add_top_k(make_tiny_model(), 1)
    experiment = prepare_experiment(model, make_prompts(model), metric="logit_diff")
    scores = attribution_patching(experiment, attention_edges=True)
    assert torch.isfinite(scores.edges).all()
    for attention in scores.attention_edges.values():
        assert torch.isfinite(attention).all()
        # Each of 4 heads keeps one key for each of 7 queries.
        assert int((attention != 0).sum()) <= 4 * 7


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="k is 0; a query must keep at least 1"):
        add_top_k(make_tiny_model(), 0)
    with pytest.raises(ValueError, match="sparse already"):
        add_top_k(add_gate(make_tiny_model()), 1)
    with pytest.raises(ValueError, match="sparse already"):
        add_top_k(add_top_k(make_tiny_model(), 1), 1)
    model = make_tiny_model()
    model.add_hook("blocks.0.attn.hook_attn_scores", lambda tensor, hook: tensor)
    with pytest.raises(ValueError, match="would be lost"):
        add_top_k(model, 1)
    assert not is_top_k(model)
    with pytest.raises(ValueError, match="save the model without add_top_k"):
        save_model(add_top_k(load_model("dense"), 2), tmp_path / "model")
