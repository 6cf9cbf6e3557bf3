"""The curves of a run, as places in percent of a plot: what the page draws without a library."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from circuits.sparsify.training_page.run_folder import RunFolder

Point = tuple[float, float]

N_BINS = 400
"""A series of more points than twice this is drawn by the least and the greatest of each bin."""


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: What it is called in the legend.
        look: Its class in the style: `selection`, `control`, `single`; `bound` is dashed.
        points: Steps and values.
        dotted: Whether each point is marked, as a measurement that is made now and then is.
    """

    name: str
    look: str
    points: list[Point]
    dotted: bool = False


@dataclass(frozen=True)
class Chart:
    """A plot over steps, ready to be drawn.

    Attributes:
        title: What is on its axis, with the unit.
        kind: How its values are written: `nats`, `percent` or `plain`.
        series: Its curves, thinned.
        paths: For each of them the SVG paths of its line and of its dots in a square of 1000 units.
        x_ticks: Places from the left in percent, with their texts.
        y_ticks: Places from the bottom in percent, with their texts.
        best: The place of the best step in percent; None if there is none.
        note: What does not show, in a sentence; often nothing.
    """

    title: str
    kind: str
    series: list[Series]
    paths: list[tuple[str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best: float | None
    note: str


def charts_of(run: RunFolder) -> list[Chart]:
    """Returns the plots of a run: what is bounded, density, lambda and speed; of a control two."""
    log, evaluations = run.log, run.evaluations
    best = None if run.best is None or run.is_control else run.best["step"]
    if run.is_control:
        held = [
            Series("batches", "control", _points(log, "sampled_ce")),
            Series("selection set", "selection", _points(evaluations, "ce"), dotted=True),
        ]
        if run.dense_ce is not None:
            held.append(Series("dense model", "selection bound", _level(run, run.dense_ce)))
        several = [_chart(run, "Cross-entropy (nats)", "nats", held, best)]
    else:
        several = [
            _bounded_chart(run, best),
            _chart(
                run,
                "Attention edges open",
                "percent",
                [
                    Series("sampled gates, expected", "control", _points(log, "expected_density")),
                    Series("selection set", "selection", _points(evaluations, "density"), True),
                ],
                best,
                is_log=True,
            ),
            _chart(
                run, "lambda", "plain",
                [Series("lambda", "single", _points(log, "lambda"))], best, is_log=True,
            ),
        ]  # fmt: skip
    speed = Series("tokens a second", "single", _points(log, "tokens_per_second"))
    several.append(_chart(run, "Tokens a second", "plain", [speed], best, from_0=True))
    return [chart for chart in several if any("bound" not in curve.look for curve in chart.series)]


def _bounded_chart(run: RunFolder, best: int | None) -> Chart:
    """What is bounded, on both sets, each with its bound."""
    log, evaluations = run.log, run.evaluations
    control = _points(log, f"control_{run.bounded}")
    measured = [
        Series("control set", "control", control),
        Series("selection set", "selection", _points(evaluations, run.bounded), dotted=True),
    ]
    if run.is_by_kl:
        bound = Series("epsilon", "selection bound", _level(run, run.config["epsilon"]))
        title = "KL(dense || sparse), nats a token"
        return _chart(run, title, "nats", [*measured, bound], best, is_log=True)
    bounds = [
        Series("its bound", "control bound", _points(log, "control_tau")),
        Series("tau", "selection bound", [] if run.limit is None else _level(run, run.limit)),
    ]
    several = [measured[0], bounds[0], measured[1], bounds[1]]
    return _chart(run, "Cross-entropy (nats)", "nats", several, best)


def _level(run: RunFolder, value: float) -> list[Point]:
    return [(0, value), (run.config["steps"], value)]


def _points(lines: Iterable[dict[str, Any]], name: str) -> list[Point]:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _chart(
    run: RunFolder,
    title: str,
    kind: str,
    series: list[Series],
    best: int | None,
    *,
    is_log: bool = False,
    from_0: bool = False,
) -> Chart:
    steps = max(run.config["steps"], 1)
    drawn = [
        Series(curve.name, curve.look, [p for p in curve.points if p[1] > 0], curve.dotted)
        if is_log
        else curve
        for curve in series
    ]
    left_out = sum(len(curve.points) for curve in series) - sum(
        len(curve.points) for curve in drawn
    )
    drawn = [Series(curve.name, curve.look, thinned(curve.points), curve.dotted) for curve in drawn]
    drawn = [curve for curve in drawn if curve.points]
    low, high, is_cut = value_range(drawn, steps, is_log=is_log, from_0=from_0)

    def place(value: float) -> float:
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    notes = []
    if is_cut:
        notes.append("The first steps lie above the axis.")
    if left_out:
        notes.append(f"{left_out} values of 0 have no place on a logarithmic axis.")
    return Chart(
        title=title + (", log axis" if is_log else ""),
        kind=kind,
        series=drawn,
        paths=[_paths(curve, steps, place) for curve in drawn],
        x_ticks=[(100 * at / steps, f"{at:,.0f}") for at in linear_ticks(0, steps, 5)],
        y_ticks=[(100 * place(at), text) for at, text in _labelled(low, high, kind, is_log=is_log)],
        best=None if best is None else 100 * best / steps,
        note=" ".join(notes),
    )


def value_range(
    series: list[Series], steps: int, *, is_log: bool, from_0: bool
) -> tuple[float, float, bool]:
    """Returns the ends of an axis, and whether values of the first steps lie above it.

    On a linear axis the tenth of the steps with which a run begins, where the gates have just
    fallen, may be cut off: it would press all the rest flat.
    """
    values = [y for curve in series for _, y in curve.points]
    if not values:
        return 1.0, 10.0, False
    later = [y for curve in series for x, y in curve.points if x > steps / 10] or values
    low, high = 0.0 if from_0 else min(values), max(values)
    is_cut = not is_log and high - low > 3 * (max(later) - low) > 0
    high = max(later) if is_cut else high
    if is_log:
        room = max((high / low) ** 0.05, 1.05)
        return low / room, high * room, False
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if from_0 else low - room), high + room, is_cut


def thinned(points: list[Point], n_bins: int = N_BINS) -> list[Point]:
    """Returns the points, or of each of many bins the least and the greatest, in their order."""
    if len(points) <= 2 * n_bins:
        return points
    kept: list[Point] = []
    for number in range(n_bins):
        part = points[number * len(points) // n_bins : (number + 1) * len(points) // n_bins]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns at most so many round numbers from `low` to `high`."""
    for exponent in range(math.floor(math.log10(high - low)) - 1, 400):
        for part in (1, 2, 5):
            step = part * 10.0**exponent
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most:
                return [number * step for number in range(first, last + 1)]
    raise AssertionError("some step is wide enough")


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns at most so many numbers that begin with 1, 2 or 5, or are round, in the range."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        every = [part * 10.0**exponent for exponent in exponents for part in parts]
        found = [step for step in every if low <= step <= high]
        if len(found) <= most:
            return found if len(found) > 1 else linear_ticks(low, high, most)
    return found[:: math.ceil(len(found) / most)]


def _labelled(low: float, high: float, kind: str, *, is_log: bool) -> list[tuple[float, str]]:
    ticks = log_ticks(low, high) if is_log else linear_ticks(low, high)
    if kind == "percent":
        return [(at, f"{100 * at:.3g} %") for at in ticks]
    if is_log:
        return [(at, f"{at:.3g}") for at in ticks]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(at, f"{at:,.{digits}f}") for at in ticks]


def _paths(series: Series, steps: int, place: Any) -> tuple[str, str]:
    """Its line, and its dots: lines of no length, whose round ends a stretched plot keeps round."""
    # The page cuts off what lies beyond the axis.
    places = [
        (f"{1000 * x / steps:.5g}", f"{min(max(1000 - 1000 * place(y), -2000), 3000):.5g}")
        for x, y in series.points
    ]
    line = "M" + "L".join(f"{x} {y}" for x, y in places)
    return line, "".join(f"M{x} {y}h0" for x, y in places) if series.dotted else ""
