"""A layered drawing in pixels: where labels stand, and how lines pass between them.

Labels never overlap: each takes the room of its text, measured in a font that is wider than most,
and rows that are too wide for the drawing are broken. Heights grow upwards, from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuits.graph import INPUT, LOGITS, head_of, node_kind, node_layer

FONT_SIZE = 12
LINE_HEIGHT = 14
GAP = 14.0
"""Pixels between labels in a row, and between the rows of one layer."""
# Between layers.
_LAYER_GAPS = (15.0, 28.0)
_PADDING = (5.0, 3.0)
_SWEEPS = 12
_POINTS = 24
_STEP = 20
_CLEAR = 3.0
# Parts of the width: where MLPs are drawn to, in turns, and what is left of them for heads.
_MLPS = (0.76, 0.92)
_HEADS = 0.72
# Widths of letters in ems, rounded up from DejaVu Sans, wider than what papers are set in.
_NARROW, _WIDE = frozenset("ijl.,:;'|!()[] ftrI"), frozenset("mwMW@%")
_EMS = {"narrow": 0.42, "wide": 1.0, "other": 0.68, "foreign": 1.2}
_BOLD = 1.12

Point = Size = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A label's place: its middle and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float


def text_width(text: str, *, bold: bool = False) -> float:
    """Returns how wide a line of text is at most, in pixels."""
    kinds = (
        "foreign" if not one.isascii() else "narrow" if one in _NARROW
        else "wide" if one in _WIDE else "other"
        for one in text
    )  # fmt: skip
    return FONT_SIZE * (_BOLD if bold else 1.0) * sum(_EMS[kind] for kind in kinds)


def label_size(lines: Sequence[str]) -> tuple[float, float]:
    """Returns the width and height of a label with these lines, the first of them bold."""
    across, along = _PADDING
    width = max(text_width(line, bold=line == lines[0]) for line in lines)
    return width + 2 * across, LINE_HEIGHT * len(lines) + 2 * along


def crowded(sizes: Mapping[str, Size], width: float) -> set[str]:
    """Returns the nodes of layers whose labels do not fit in one row."""
    return {
        name for names in _by_level(sizes) if _is_too_wide(names, sizes, width) for name in names
    }


def placed(
    sizes: Mapping[str, Size],
    edges: Iterable[tuple[str, str]],
    width: float,
    height: float,
) -> tuple[dict[str, Box], float]:
    """Returns the place of each node, and the height that all take.

    Layers follow each other upwards, the heads of one below its MLP; only those with a node take
    room. In a row nodes stand near the mean of what they are joined to, in the order of these means
    (the barycenter heuristic of Sugiyama, Tagawa and Toda, 1981), half drawn to an even spread.

    Args:
        sizes: Width and height of the label of each node, `input` and `logits` among them or not.
        edges: Names of the nodes that are joined.
        width: Of the drawing. A label that is wider is cut off at both sides.
        height: What the drawing should take: layers move apart or together, but not too far.
    """
    rows = _rows(sizes, width)
    joined: dict[str, list[str]] = {name: [] for name in sizes}
    for source, destination in edges:
        joined[source].append(destination)
        joined[destination].append(source)
    across = {name: x for row in rows for name, x in zip(row, _anchors(row, 0, width), strict=True)}
    for sweep in range(_SWEEPS):
        turns = list(enumerate(rows))
        for number, row in turns if sweep % 2 == 0 else reversed(turns):
            means = {
                name: sum(across[one] for one in joined[name]) / len(joined[name])
                if joined[name]
                else across[name]
                for name in row
            }
            row.sort(key=lambda name: means[name])
            anchors = _anchors(row, number, width)
            wanted = [(means[name] + a) / 2 for name, a in zip(row, anchors, strict=True)]
            kept = _apart(wanted, [sizes[name][0] for name in row], width)
            across |= dict(zip(row, kept, strict=True))
    heights = [max(sizes[name][1] for name in row) for row in rows]
    levels = [_level(row[0]) for row in rows]
    within = [below == above for below, above in zip(levels, levels[1:], strict=False)]
    spare = height - sum(heights) - GAP * sum(within)
    least, most = _LAYER_GAPS
    between = min(most, max(least, spare / max(1, within.count(False))))
    boxes: dict[str, Box] = {}
    foot = 0.0
    for row, height, same in zip(rows, heights, [*within, True], strict=True):
        boxes |= {name: Box(across[name], foot + height / 2, *sizes[name]) for name in row}
        foot += height + (GAP if same else between)
    return boxes, foot - GAP


def routed(start: Point, end: Point, obstacles: Sequence[Box], width: float) -> list[Point]:
    """Returns a line from one point up to another that keeps clear of labels where it can.

    It leaves and arrives upwards: a cubic Bezier curve whose inner points lie straight above the
    first and below the last, or aside. Of several bends to either side, of each half by itself, the
    one is taken that crosses the fewest labels, and of these the one that strays least.
    """
    most = int(width) // _STEP
    steps = _STEP * np.arange(-most, most + 1.0)
    first, last = (one.ravel() for one in np.meshgrid(steps, steps))
    t = np.linspace(0, 1, _POINTS + 1)
    parts = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    rise = 0.4 * (end[1] - start[1])
    y = np.array([start[1], start[1] + rise, end[1] - rise, end[1]]) @ parts
    inner = np.stack([start[0] + first, end[0] + last], axis=1)
    x = np.outer(np.full(len(first), start[0]), parts[0]) + inner @ parts[1:3] + end[0] * parts[3]
    crossed = ((x < 0) | (x > width)).sum(axis=1)
    for box in obstacles:
        if not start[1] < box.y < end[1]:
            continue
        inside = abs(x - box.x) < box.width / 2 + _CLEAR
        inside &= abs(y - box.y) < box.height / 2 + _CLEAR
        crossed += inside.any(axis=1)
    strays = abs(first) + abs(last) + abs(first - last)
    best = np.lexsort((strays, crossed))[0]
    return list(zip(x[best].tolist(), y.tolist(), strict=True))


def _level(name: str) -> tuple[float, int]:
    if name in (INPUT, LOGITS):
        return (-1.0 if name == INPUT else float("inf"), 0)
    return (float(node_layer(name)), int(node_kind(name) == "mlp"))


def _by_level(names: Iterable[str]) -> list[list[str]]:
    """The names of each layer, heads and MLP apart, from below; heads by their numbers."""
    levels: dict[tuple[float, int], list[str]] = {}
    for name in sorted(names, key=lambda name: head_of(name) if node_kind(name) == "head" else ()):
        levels.setdefault(_level(name), []).append(name)
    return [levels[level] for level in sorted(levels)]


def _is_too_wide(names: Sequence[str], sizes: Mapping[str, Size], width: float) -> bool:
    return sum(sizes[name][0] + GAP for name in names) - GAP > width


def _rows(sizes: Mapping[str, Size], width: float) -> list[list[str]]:
    """The names in rows; those of a layer in as many as are needed, each name in its turn."""
    rows = []
    for names in _by_level(sizes):
        n_rows = 1
        while n_rows < len(names) and any(
            _is_too_wide(names[first::n_rows], sizes, width) for first in range(n_rows)
        ):
            n_rows += 1
        rows += [names[first::n_rows] for first in range(n_rows)]
    return rows


def _anchors(row: Sequence[str], number: int, width: float) -> list[float]:
    """Where nodes of a row stand if nothing draws them elsewhere: spread evenly, MLPs aside."""
    kind = node_kind(row[0])
    if kind == "mlp":
        return [width * _MLPS[number % 2]]
    room = width * (_HEADS if kind == "head" else 1.0)
    return [(place + 0.5) / len(row) * room for place in range(len(row))]


def _apart(wanted: Sequence[float], widths: Sequence[float], width: float) -> list[float]:
    """The places nearest to those wanted, in this order, at which labels do not overlap.

    Without the least distances between neighbours it is a regression on rising values, which
    pooling neighbours that are out of order solves (least squares).
    """
    offsets = [0.0]
    for left, right in zip(widths, widths[1:], strict=False):
        offsets.append(offsets[-1] + (left + right) / 2 + GAP)
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while pools and pools[-1][0] > mean:
            before, n = pools.pop()
            mean, count = (mean * count + before * n) / (count + n), count + n
        pools.append((mean, count))
    low = widths[0] / 2
    high = max(low, width - widths[-1] / 2 - offsets[-1])
    free = [min(max(mean, low), high) for mean, count in pools for _ in range(count)]
    return [place + offset for place, offset in zip(free, offsets, strict=True)]
