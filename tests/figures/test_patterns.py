import numpy as np
import pytest
import torch

from circuits.figures import COLOURS, patterns_figure
from tests.traces import layout, traces

TOKENS = (";", "7", "+", "7", "<b>")


def patterns(n_layers=2, n_heads=3, n_pos=5):
    return torch.rand(n_layers, n_heads, n_pos, n_pos)


def test_every_head_of_both_models_is_drawn_dense_above_sparse():
    dense, sparse = patterns(), patterns()
    figure = patterns_figure(TOKENS, dense, sparse)
    assert [trace.name for trace in traces(figure)] == [
        f"{side} a{layer}.h{head}"
        for layer in range(2)
        for side in ("dense", "sparse")
        for head in range(3)
    ]
    for trace in traces(figure):
        side, name = trace.name.split()
        layer, head = (int(part) for part in name[1:].split(".h"))
        np.testing.assert_allclose(trace.z, {"dense": dense, "sparse": sparse}[side][layer, head])
        assert trace.colorscale[-1][1] == COLOURS[side]
        assert (trace.zmin, trace.zmax) == (0, 1)
    assert [note.text for note in layout(figure).annotations] == [t.name for t in traces(figure)]


def test_equal_tokens_keep_a_row_each_and_are_escaped():
    figure = patterns_figure(TOKENS, patterns(), patterns())
    axis = layout(figure).xaxis
    assert axis.tickvals == (0, 1, 2, 3, 4)
    assert axis.ticktext == (";", "7", "+", "7", "&lt;b&gt;")


def test_queries_run_downwards():
    figure = patterns_figure(TOKENS, patterns(), patterns())
    assert all(layout(figure)[f"yaxis{n or ''}"].autorange == "reversed" for n in ("", 2, 12))


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [(patterns(), patterns(n_heads=2)), (patterns(n_pos=4), patterns(n_pos=4))],
    ids=["another model", "other tokens"],
)
def test_patterns_that_do_not_fit_are_refused(dense, sparse):
    with pytest.raises(ValueError, match="patterns have shape .* with 5 tokens"):
        patterns_figure(TOKENS, dense, sparse)
