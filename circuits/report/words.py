"""What a comparison says, in sentences: its headlines, and what to know before believing them."""

from __future__ import annotations

import math

from circuits.figures import UNITS, counted, rounded
from circuits.results.comparison import SIDES, Comparison, prefix_size_ratio, size_ratio
from circuits.results.discovery import Found

CE_TOLERANCE = 0.01
ACCURACY_FLOOR = 0.95


def headlines(comparison: Comparison) -> list[str]:
    """Returns what was found, a plain sentence for each task and granularity.

    Within a task edges come first: they are the finest components that both circuits share.
    """
    sentences = [
        f"{task}: {headline(comparison, task, granularity)}"
        for task in comparison.discoveries
        for granularity in edges_first(comparison, task)
    ]
    sentences += [f"{task}: not compared. {why}" for task, why in comparison.not_compared().items()]
    return sentences


def edges_first(comparison: Comparison, task: str) -> list[str]:
    """Returns the granularities of a task in the order in which they are told of."""
    known = map(str, comparison.discoveries[task]["dense"].found)
    return sorted(known, key=lambda name: name != "edge")


def headline(comparison: Comparison, task: str, granularity: str) -> str:
    """Returns what was found of one task at one granularity, as a sentence."""
    found = comparison.discoveries[task]
    dense, sparse = (found[side].found[granularity] for side in SIDES)  # type: ignore[index]
    verdict = (
        _verdict(*size_ratio(dense, sparse), dense.interval)
        if dense.is_minimal is None
        else _verdict_of_pruned(dense, sparse)
    )
    return (
        f"{100 * found['dense'].config.target:.4g} % of the behaviour takes "
        f"{counted(dense.size, granularity)} in the dense model and {sparse.size:.4g} in "
        f"the sparse one{verdict}."
    )


def _verdict(ratio: float, low: float, high: float, drawn: str) -> str:
    """The ratio in words; one whose interval holds 1 is no difference, whatever it is."""
    if math.isnan(ratio):
        return "; no clear difference"
    if math.isnan(low):
        why = drawn.removeprefix("none: ") if drawn.startswith("none") else ""
        no_interval = f"no interval: {why}" if why else "no interval"
        return f" (ratio {rounded(ratio)}, {no_interval}); no clear difference"
    text = f" (ratio {rounded(ratio)}, 95 % interval {rounded(low)} to {rounded(high)})"
    if low <= 1 <= high:
        return f"{text}; no clear difference: the interval includes 1"
    return text if ratio > 1 else f"{text}; the sparse model needs more"


def _verdict_of_pruned(dense: Found, sparse: Found) -> str:
    """The ratio of pruned sizes, which has no interval, and that of the sizes before, which has."""
    ratio, *_ = size_ratio(dense, sparse)
    before, low, high = prefix_size_ratio(dense, sparse)
    text = "" if math.isnan(ratio) else f"ratio {rounded(ratio)}; "
    text += f"before pruning {dense.prefix_size:.4g} and {sparse.prefix_size:.4g}"
    if not math.isnan(low):
        text += f", ratio {rounded(before)}, 95 % interval {rounded(low)} to {rounded(high)}"
    return f" ({text})"


def warnings_of(comparison: Comparison) -> list[str]:
    """Returns what a reader must know before believing the ratios."""
    found = []
    dense, sparse = (comparison.models[side].ce for side in SIDES)
    others = comparison.of_other_tokenizer()
    if others:
        found.append(
            f"Other tokenizer than the dense model's: {', '.join(others)}. Cross-entropies are "
            "per token and cannot be compared with the dense model's, and prompts are made of the "
            "words that a tokenizer knows, so that they need not be the same."
        )
    if "sparse" in others:
        found.append(
            "What needs the same tokens in both models of the pair is left out: the roles of "
            "heads, and prompts with attention."
        )
    quantized = {name: m.quantization for name, m in comparison.models.items() if m.quantization}
    if quantized:
        each = "; ".join(f"{name}: {how}" for name, how in quantized.items())
        found.append(
            f"Weights that were quantised ({each}) are not those of the model that they were made "
            "of."
        )
    if dense is None or sparse is None:
        found.append("Cross-entropy was not measured: no held-out text was given.")
    elif "sparse" not in others and sparse > dense + CE_TOLERANCE:
        found.append(
            f"The sparse model is worse: its cross-entropy is {sparse - dense:.4f} nats above the "
            f"dense model's ({sparse:.4f} against {dense:.4f})."
        )
    for task, sides in comparison.discoveries.items():
        for side, discovery in sides.items():
            if discovery.accuracy < ACCURACY_FLOOR:
                found.append(
                    f"The {side} model answers {discovery.accuracy:.1%} of the {task} prompts "
                    "right; a circuit of a behaviour that is not quite there means less."
                )
            for granularity, one in discovery.found.items():
                if one.faithfulness_high < discovery.config.target:
                    found.append(
                        f"The {side} model's circuit of {task} ({UNITS[granularity]}) was sized at "
                        f"{one.faithfulness_sizing:.3f} of the behaviour, but recovers "
                        f"{faithfulness_words(one)}."
                    )
                elif one.measured_on == "sizing":
                    found.append(
                        f"The {side} model's circuit of {task} ({UNITS[granularity]}) recovers "
                        f"{faithfulness_words(one)}."
                    )
    return found


def faithfulness_words(one: Found) -> str:
    """Returns a circuit's faithfulness with its interval, and the prompts that it is of."""
    if math.isnan(one.faithfulness_low):
        bounds = ""
    else:
        bounds = f" [{one.faithfulness_low:.3f}, {one.faithfulness_high:.3f}]"
    if one.measured_on == "reporting":
        return f"{one.faithfulness:.3f}{bounds} on {one.n_measured} fresh prompts"
    return (
        f"{one.faithfulness:.3f}{bounds} on the {one.n_measured} prompts that it was found on: no "
        "fresh prompt shares their templates"
    )
