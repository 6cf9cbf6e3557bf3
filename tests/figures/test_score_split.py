import pytest
import torch

from circuits.figures import score_split_figure
from circuits.figures.style import COUNTERS, SUPPORTS
from circuits.results.score_split import ScoreSplit
from tests.traces import layout, traces


def make_split(pairs, gate_bias=None, by_position=0.0):
    names = ["embed", *(f"a0.h{head}" for head in range(len(pairs) - 2)), "bias"]
    return ScoreSplit(
        model="<m>",
        tokens=("<b>", "to"),
        layer=1,
        head=3,
        query=1,
        key=0,
        sources=tuple(names),
        pairs=pairs,
        by_position=by_position,
        score=float(pairs.sum()) + by_position,
        gate_bias=gate_bias,
        pattern=0.5,
    )


def test_the_map_is_the_split_and_the_list_its_strongest_pairs():
    pairs = torch.tensor([[1.0, -4.0, 0.0], [3.0, 2.0, 0.5], [0.0, 0.0, 0.25]])
    splits = {"dense": make_split(pairs), "<sparse>": make_split(2 * pairs, gate_bias=0.0)}
    figure = score_split_figure(splits, n_pairs=3)
    dense, bars, sparse, _ = traces(figure)
    assert [list(row) for row in dense.z] == pairs.tolist()
    assert list(dense.x) == list(dense.y) == ["embed", "a0.h0", "bias"]
    assert -dense.zmin == dense.zmax == sparse.zmax == 8
    assert list(bars.y) == ["a0.h0 x a0.h0", "a0.h0 x embed", "embed x a0.h0"]
    assert list(bars.x) == [2, 3, -4]
    assert list(bars.marker.color) == [SUPPORTS, SUPPORTS, COUNTERS]
    titles = [note.text for note in layout(figure).annotations]
    assert titles[0] == "dense: score 2.75<br>attention 0.50, no threshold"
    assert titles[1].startswith("&lt;sparse&gt;: score 5.50<br>open, 5.50 over the threshold, shut")
    assert "a1.h3 from 1 'to' to 0 '&lt;b&gt;'" in layout(figure).title.text
    shut = score_split_figure(make_split(pairs, gate_bias=-3.0))
    assert "shut, 0.25 under the threshold" in layout(shut).annotations[0].text
    with pytest.raises(ValueError, match="at least one split"):
        score_split_figure({})


def test_of_many_sources_the_weak_are_added_up():
    pairs = torch.randn(40, 40)
    pairs[:, 7] += 100
    pairs[9] -= 100
    drawn = traces(score_split_figure(make_split(pairs)))[0]
    assert len(drawn.x) == len(drawn.y) == 24
    assert (drawn.x[-1], drawn.y[-1]) == ("others", "others")
    assert sum(map(sum, drawn.z)) == pytest.approx(float(pairs.sum()), abs=1e-3)
    at = drawn.y.index("a0.h8"), drawn.x.index("a0.h6")
    assert drawn.z[at[0]][at[1]] == pytest.approx(float(pairs[9, 7]), abs=1e-5)
    order = [int(name.split("h")[1]) for name in drawn.x if name.startswith("a0")]
    assert order == sorted(order)
