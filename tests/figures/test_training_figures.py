import pandas as pd
import pytest

from circuits.figures import frontier_figure, training_figure
from tests.traces import layout, traces


def make_log():
    """Four steps, evaluated at every second one."""
    return pd.DataFrame(
        {
            "step": [1, 2, 3, 4],
            "expected_density": [0.5, 0.4, 0.2, 0.1],
            "lambda": [1.0, 1.1, 1.2, 1.1],
            "ce": [None, 1.5, None, 1.2],
            "tau": [None, 1.3, None, 1.3],
            "density": [None, 0.3, None, 0.1],
        }
    )


def test_the_curves_of_a_run_are_drawn_where_they_were_measured():
    named = {trace.name: trace for trace in traces(training_figure(make_log()))}
    assert list(named["CE, held out"].x) == [2, 4]
    assert list(named["CE, held out"].y) == [1.5, 1.2]
    assert list(named["bound"].y) == [1.3, 1.3]
    assert list(named["open, expected"].x) == [1, 2, 3, 4]
    assert list(named["open, held out"].y) == [0.3, 0.1]
    assert list(named["lambda"].y) == [1.0, 1.1, 1.2, 1.1]


def test_a_bounded_divergence_is_drawn_under_its_own_bound():
    log = make_log().drop(columns="tau")
    log["kl"], log["epsilon"] = [None, 0.4, None, 0.01], [None, 0.02, None, 0.02]
    figure = training_figure(log)
    named = {trace.name: trace for trace in traces(figure)}
    assert list(named["KL, held out"].x) == [2, 4]
    assert list(named["KL, held out"].y) == [0.4, 0.01]
    assert list(named["bound"].y) == [0.02, 0.02]
    assert "CE, held out" not in named
    assert layout(figure).yaxis.title.text == "KL (nats)"


def test_a_log_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no column 'ce'; give the log.jsonl"):
        training_figure(make_log().drop(columns="ce"))


def test_the_frontier_has_a_line_for_each_series_in_the_order_of_density():
    points = pd.DataFrame(
        {
            "series": ["top k", "top k", "gate <b>"],
            "density": [0.1, 0.01, 0.005],
            "ce": [1.2, 1.5, 1.21],
        }
    )
    figure = frontier_figure(points, bound=1.2)
    top, gate = traces(figure)
    assert list(top.x) == [0.01, 0.1]
    assert list(top.y) == [1.5, 1.2]
    assert gate.name == "gate &lt;b&gt;"
    assert layout(figure).shapes[0].y0 == 1.2
    assert layout(figure).xaxis.type == "log"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (pd.DataFrame({"series": ["a"], "ce": [1.0]}), "no column 'density'"),
        (pd.DataFrame({"series": ["a"], "ce": [1.0], "density": [0.0]}), "densities are shares"),
        (pd.DataFrame({"series": ["a"], "ce": [1.0], "density": [25.0]}), "densities are shares"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        frontier_figure(points)
