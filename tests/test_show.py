import pytest
import torch

from circuits import show_attention
from circuits.gate.gate import add_gate
from circuits.models.load import copy_model
from tests.helpers import make_tiny_model, word_tokenizer
from tests.traces import layout, traces


@pytest.fixture
def model():
    return make_tiny_model(tokenizer=word_tokenizer(["the", "cat", "sat", "<b>"]))


def test_a_head_is_shown_in_each_model_on_a_prompt_of_ones_own(model):
    gated = add_gate(copy_model(model), bias=0.0)
    figure = show_attention({"dense": model, "sparse": gated}, "the cat sat <b> cat", 1, 0)
    assert [trace.name for trace in traces(figure)] == ["dense", "sparse"]
    labels = layout(figure).xaxis.ticktext
    assert labels[1:] == ("the", "cat", "sat", "&lt;b&gt;", "cat")
    tokens = model.to_tokens("the cat sat <b> cat")
    for trace, shown in zip(traces(figure), (model, gated), strict=True):
        _, cache = shown.run_with_cache(tokens)
        expected = cache["pattern", 1][0, 0].tolist()
        torch.testing.assert_close(torch.tensor(trace.z), torch.tensor(expected))
    assert torch.tensor(traces(figure)[0].z).sum(dim=1).allclose(torch.ones(6))
    assert (torch.tensor(traces(figure)[1].z) == 0).sum() > 15  # shut edges, besides the upper half


def test_one_model_is_named_by_itself(model):
    figure = show_attention(model, "the cat", 0, 1)
    assert [trace.name for trace in traces(figure)] == [model.cfg.model_name]


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (0, 2), (-1, 0)])
def test_a_head_that_is_not_there_is_refused(model, layer, head):
    with pytest.raises(ValueError, match=f"no head a{layer}.h{head}: it has layers 0 to 1, of"):
        show_attention(model, "the cat", layer, head)
