"""The first screen of the report: a verdict for each behaviour, and the head that changed most."""

from __future__ import annotations

import math
from dataclasses import dataclass

from circuits.figures import UNITS, rounded
from circuits.report.words import edges_first, headline
from circuits.results.comparison import SIDES, Comparison, attribution_ratio, size_ratio
from circuits.results.discovery import Found

SEEN = 0.01
"""Attention from which a query is said to look at a token."""
_WIDEST = math.log(100)


@dataclass(frozen=True)
class Ratio:
    """A ratio of sizes as a mark on a logarithmic axis whose middle is 1.

    Attributes:
        unit: What is counted.
        dense: The dense model's size, as text.
        sparse: The sparse model's.
        text: The ratio with its interval.
        at: Where the ratio stands, in percent of the axis; None without one.
        low: Where its interval begins; None without one.
        high: Where it ends.
        attribution: The ratio of the counts without interventions, as text.
        clear: "fewer" or "more" where the interval leaves 1 out, else "".
    """

    unit: str
    dense: str
    sparse: str
    text: str
    at: float | None
    low: float | None
    high: float | None
    attribution: str
    clear: str


@dataclass(frozen=True)
class Verdict:
    """What was found of one behaviour: a sentence, and the ratio of each kind of component."""

    task: str
    sentence: str
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True)
class ChangedHead:
    """A head whose attention differs between the models, on the first prompt of a task.

    Attributes:
        task: The task.
        head: The head's name, the same in both models.
        change: Half the absolute difference of the two patterns, mean over queries.
        seen: At how many tokens a query looks (at least 0.01 of its attention), by model, mean
            over queries.
        visible: How many tokens a query could look at, mean over queries.
    """

    task: str
    head: str
    change: float
    seen: dict[str, float]
    visible: float


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Returns one verdict for each task: its first headline, and all its ratios.

    A task that one of the pair does not do has a sentence, and no ratio.
    """
    pairs = {
        task: {
            name: (found["dense"].found[name], found["sparse"].found[name])  # type: ignore[index]
            for name in edges_first(comparison, task)
        }
        for task, found in comparison.discoveries.items()
    }
    ends = [
        abs(math.log(end))
        for several in pairs.values()
        for pair in several.values()
        for end in size_ratio(*pair)
        if end > 0 and math.isfinite(end)
    ]
    reach = min(_WIDEST, 1.1 * max([math.log(2), *ends]))
    told = [
        Verdict(
            task,
            headline(comparison, task, next(iter(several))),
            tuple(_ratio(name, *pair, reach) for name, pair in several.items()),
        )
        for task, several in pairs.items()
    ]
    return told + [
        Verdict(task, f"not compared. {why}", ()) for task, why in comparison.not_compared().items()
    ]


def _ratio(granularity: str, dense: Found, sparse: Found, reach: float) -> Ratio:
    ratio, low, high = size_ratio(dense, sparse)
    counts = attribution_ratio(dense, sparse)
    text = "both empty" if math.isnan(ratio) else rounded(ratio)
    if not math.isnan(low):
        text += f" [{rounded(low)}, {rounded(high)}]"
    return Ratio(
        unit=UNITS[granularity],
        dense=f"{dense.size:.4g}",
        sparse=f"{sparse.size:.4g}",
        text=text,
        at=_place(ratio, reach),
        low=_place(low, reach),
        high=_place(high, reach),
        attribution="-" if math.isnan(counts) else rounded(counts),
        clear="fewer" if low > 1 else "more" if high < 1 else "",
    )


def _place(value: float, reach: float) -> float | None:
    """Percent of an axis from -reach to reach in logarithms; what is beyond stands at its end."""
    if math.isnan(value):
        return None
    exponent = math.log(value) if value > 0 else -math.inf
    return round(50 + 50 * min(1.0, max(-1.0, exponent / reach)), 2)


def most_changed_head(comparison: Comparison) -> ChangedHead | None:
    """Returns the head whose attention differs most between the models; None without prompts.

    Looked at are the heads in both circuits of a task, on its first prompt: those of the circuits
    of heads, else of the first granularity; where no head is in both, the heads in either.
    """
    changed = [
        _changed(comparison, task, head)
        for task, examples in comparison.examples.items()
        if examples and task in comparison.discoveries
        for head in _candidates(comparison, task)
    ]
    return max(changed, key=lambda one: one.change, default=None)


def _candidates(comparison: Comparison, task: str) -> list[str]:
    found = comparison.discoveries[task]
    dense, sparse = (
        (found[side].found.get("head") or next(iter(found[side].found.values()))).circuit.heads
        for side in SIDES
    )
    known = [
        {f"a{layer}.h{head}" for layer, heads in enumerate(patterns) for head in range(len(heads))}
        for patterns in comparison.examples[task][0].patterns.values()
    ]
    either = [
        name for name in dict.fromkeys([*dense, *sparse]) if all(name in one for one in known)
    ]
    return [name for name in either if name in dense and name in sparse] or either


def _changed(comparison: Comparison, task: str, name: str) -> ChangedHead:
    layer, head = (int(part) for part in name[1:].split(".h"))
    patterns = {side: comparison.examples[task][0].patterns[side][layer][head] for side in SIDES}
    n = len(patterns["dense"])
    difference = sum(
        abs(one - other)
        for queries in zip(*patterns.values(), strict=True)
        for one, other in zip(*queries, strict=True)
    )
    seen = {
        side: sum(share >= SEEN for query in pattern for share in query) / n
        for side, pattern in patterns.items()
    }
    return ChangedHead(task, name, difference / 2 / n, seen, (n + 1) / 2)
