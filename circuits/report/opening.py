"""The first screen of the report: a verdict for each behaviour, and a head to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from circuits.figures import UNITS
from circuits.numbers import rounded, sized
from circuits.report.words import edges_first, headline, left_out_words
from circuits.results.comparison import Comparison
from circuits.results.discovery import Evidence
from circuits.results.pair import attribution_ratio, size_ratio
from circuits.results.roles import HeadRole

SEEN = 0.01
"""Attention from which a query is said to look at a token."""
N_HEADS = 4
"""Heads of a model alone that the first screen names."""
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
class Share:
    """The circuit of a model alone, as a share of what there is to choose from.

    Attributes:
        unit: What is counted.
        size: How many components it has, with its interval, as text.
        components: How many there are, as text.
        percent: The share, in percent.
        faithfulness: Its faithfulness with its interval, as text.
        attribution: The count without interventions, as text.
    """

    unit: str
    size: str
    components: str
    percent: float
    faithfulness: str
    attribution: str


@dataclass(frozen=True)
class StrongHead:
    """A head of a model's circuit: its name, score, and what it looks at, in words."""

    name: str
    score: str
    does: str


@dataclass(frozen=True)
class Verdict:
    """What was found of one behaviour.

    Attributes:
        task: The behaviour.
        sentence: What was found at the first granularity.
        ratios: The ratio of each kind of component, of two models.
        shares: The share of each kind of component, of one model.
        heads: The strongest heads of one model's circuit.
    """

    task: str
    sentence: str
    ratios: tuple[Ratio, ...] = ()
    shares: tuple[Share, ...] = ()
    heads: tuple[StrongHead, ...] = ()


@dataclass(frozen=True)
class PicturedHead:
    """A head whose attention is shown on the first prompt of a task.

    Attributes:
        task: The task.
        head: The head's name, the same in both models.
        change: Half the absolute difference of the two patterns, mean over queries; 0 for a model
            alone.
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
    """Returns one verdict for each task: its first headline, and its ratios or shares.

    A task that one of the models side by side does not do has a sentence, and nothing else.
    """
    told = _of_pair(comparison) if comparison.is_pair else _of_one(comparison)
    return told + [Verdict(task, why) for task, why in left_out_words(comparison).items()]


def _of_one(comparison: Comparison) -> list[Verdict]:
    (side,) = comparison.sides
    return [
        Verdict(
            task,
            headline(comparison, task, edges_first(comparison, task)[0]),
            shares=tuple(
                _share(name, found[side].circuits[name]) for name in edges_first(comparison, task)
            ),
            heads=tuple(_strongest_heads(comparison, task)),
        )
        for task, found in comparison.discoveries.items()
    ]


def _share(granularity: str, one: Evidence) -> Share:
    size = sized(one.size)
    if not math.isnan(one.size_low):
        size += f" [{sized(one.size_low)}, {sized(one.size_high)}]"
    faithfulness = f"{one.faithfulness:.2f}"
    if not math.isnan(one.faithfulness_low):
        faithfulness += f" [{one.faithfulness_low:.2f}, {one.faithfulness_high:.2f}]"
    return Share(
        unit=UNITS[granularity],
        size=size,
        components=sized(one.n_components),
        percent=round(100 * one.size / one.n_components, 2) if one.n_components else 0.0,
        faithfulness=faithfulness,
        attribution=sized(one.n_attribution),
    )


def _strongest_heads(comparison: Comparison, task: str) -> list[StrongHead]:
    """The heads of the circuit with the greatest absolute scores, and what they look at."""
    roles = {role.head: role for role in comparison.roles if role.task == task}
    return [
        StrongHead(name, f"{score:+.3g}", _in_words(roles[name]) if name in roles else "")
        for name, score in _scored_heads(comparison, task)[:N_HEADS]
    ]


def _scored_heads(comparison: Comparison, task: str) -> list[tuple[str, float]]:
    """The heads of a model's circuit with their scores, the greatest absolute one first."""
    found = comparison.discoveries[task][comparison.sides[0]].circuits
    circuit = (found.get("head") or next(iter(found.values()))).circuit
    totals = dict(zip(circuit.graph.sources, circuit.scores.sum(dim=1).tolist(), strict=True))
    return sorted(((name, totals[name]) for name in circuit.heads), key=lambda one: -abs(one[1]))


def _in_words(role: HeadRole) -> str:
    """What a head looks at, from the threshold of a role on."""
    if role.role in ("name_mover", "negative_name_mover"):
        effect = "raises" if role.role == "name_mover" else "lowers"
        return (
            f"looks at the answer ({role.to_answer:.2f}) and {effect} its logit by "
            f"{abs(role.direct):.2g}"
        )
    looked_at = {
        "changed_token": ("the token that the corrupted prompt changes", role.to_changed),
        "induction": ("what followed the same token before", role.induction),
        "duplicate_token": ("the same token before", role.duplicate_token),
        "previous_token": ("the token before", role.previous_token),
    }
    if role.role not in looked_at:
        return "none of the roles that are looked for"
    what, attention = looked_at[role.role]
    return f"looks at {what} ({attention:.2f})"


def _of_pair(comparison: Comparison) -> list[Verdict]:
    one, other = comparison.sides
    pairs = {
        task: {
            name: (found[one].circuits[name], found[other].circuits[name])
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
    return [
        Verdict(
            task,
            headline(comparison, task, next(iter(several))),
            ratios=tuple(_ratio(name, *pair, reach) for name, pair in several.items()),
        )
        for task, several in pairs.items()
    ]


def _ratio(granularity: str, dense: Evidence, sparse: Evidence, reach: float) -> Ratio:
    ratio, low, high = size_ratio(dense, sparse)
    counts = attribution_ratio(dense, sparse)
    text = "both empty" if math.isnan(ratio) else rounded(ratio)
    if not math.isnan(low):
        text += f" [{rounded(low)}, {rounded(high)}]"
    return Ratio(
        unit=UNITS[granularity],
        dense=sized(dense.size),
        sparse=sized(sparse.size),
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


def pictured_head(comparison: Comparison) -> PicturedHead | None:
    """Returns the head to look at first; None without prompts.

    Of two models, the one whose attention differs most between them. Looked at are the heads in
    both circuits of a task, on its first prompt: those of the circuits of heads, else of the first
    granularity; where no head is in both, the heads in either. Of one model, the head of the first
    task's circuit with the greatest absolute score.
    """
    tasks = [task for task, several in comparison.examples.items() if several]
    tasks = [task for task in tasks if task in comparison.discoveries]
    if not comparison.is_pair:
        strongest = [
            (task, name) for task in tasks for name, _ in _scored_heads(comparison, task)[:1]
        ]
        return _pictured(comparison, *strongest[0]) if strongest else None
    changed = [
        _pictured(comparison, task, head)
        for task in tasks
        for head in _candidates(comparison, task)
    ]
    return max(changed, key=lambda one: one.change, default=None)


def _candidates(comparison: Comparison, task: str) -> list[str]:
    found = comparison.discoveries[task]
    dense, sparse = (
        (
            found[side].circuits.get("head") or next(iter(found[side].circuits.values()))
        ).circuit.heads
        for side in comparison.sides
    )
    known = [
        {f"a{layer}.h{head}" for layer, heads in enumerate(patterns) for head in range(len(heads))}
        for patterns in comparison.examples[task][0].patterns.values()
    ]
    either = [
        name for name in dict.fromkeys([*dense, *sparse]) if all(name in one for one in known)
    ]
    return [name for name in either if name in dense and name in sparse] or either


def _pictured(comparison: Comparison, task: str, name: str) -> PicturedHead:
    layer, head = (int(part) for part in name[1:].split(".h"))
    example = comparison.examples[task][0]
    patterns = {side: example.patterns[side][layer][head] for side in comparison.sides}
    first, last = patterns[comparison.sides[0]], patterns[comparison.sides[-1]]
    n = len(first)
    difference = sum(
        abs(one - other)
        for queries in zip(first, last, strict=True)
        for one, other in zip(*queries, strict=True)
    )
    seen = {
        side: sum(share >= SEEN for query in pattern for share in query) / n
        for side, pattern in patterns.items()
    }
    return PicturedHead(task, name, difference / 2 / n, seen, (n + 1) / 2)
