"""What results say, in sentences: their headlines, and what to know before believing them."""

from __future__ import annotations

import math

from circuits.figures import UNITS, counted
from circuits.numbers import percent, rounded, sized
from circuits.results.comparison import Comparison
from circuits.results.discovery import Discovery, Evidence
from circuits.results.pair import size_ratio

CE_TOLERANCE = 0.01
ACCURACY_FLOOR = 0.95


def headlines(comparison: Comparison) -> list[str]:
    """Returns what was found, a plain sentence for each task and granularity.

    Within a task edges come first: they are the finest components that do not depend on a prompt.
    """
    sentences = [
        f"{task}: {headline(comparison, task, granularity)}"
        for task in comparison.discoveries
        for granularity in edges_first(comparison, task)
    ]
    left_out = left_out_words(comparison)
    return sentences + [f"{task}: {why}" for task, why in left_out.items()]


def left_out_words(comparison: Comparison) -> dict[str, str]:
    """Returns why there is nothing to tell of a task, by task."""
    what = "not compared" if comparison.is_pair else "no circuit"
    return {task: f"{what}. {why}" for task, why in comparison.not_compared().items()}


def edges_first(comparison: Comparison, task: str) -> list[str]:
    """Returns the granularities of a task in the order in which they are told of."""
    known = map(str, comparison.discoveries[task][comparison.sides[0]].circuits)
    return sorted(known, key=lambda name: name != "edge")


def headline(comparison: Comparison, task: str, granularity: str) -> str:
    """Returns what was found of one task at one granularity, as a sentence."""
    found = comparison.discoveries[task]
    if not comparison.is_pair:
        return _headline_of_one(found[comparison.sides[0]], granularity)
    dense, sparse = (found[side].circuits[granularity] for side in comparison.sides)
    verdict = _verdict(*size_ratio(dense, sparse), dense.interval)
    if dense.is_minimal is not None:
        verdict += f"; before pruning {sized(dense.prefix_size)} and {sized(sparse.prefix_size)}"
    return (
        f"{percent(found['dense'].config.target, 4)} of the behaviour takes "
        f"{counted(dense.size, granularity)} in the dense model and {sized(sparse.size)} in "
        f"the sparse one{verdict}."
    )


def _headline_of_one(discovery: Discovery, granularity: str) -> str:
    one = discovery.circuits[granularity]
    bounds = "" if math.isnan(one.size_low) else f" [{sized(one.size_low)}, {sized(one.size_high)}]"
    return (
        f"{percent(discovery.config.target, 4)} of the behaviour takes "
        f"{counted(one.size, granularity)}{bounds} of {sized(one.n_components)}, which recover "
        f"{faithfulness_words(one)}."
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


def warnings_of(comparison: Comparison) -> list[str]:
    """Returns what a reader must know before believing the sizes and their ratios."""
    found = _warnings_of_pair(comparison) if comparison.is_pair else []
    quantized = {name: m.quantization for name, m in comparison.models.items() if m.quantization}
    if quantized:
        each = "; ".join(f"{name}: {how}" for name, how in quantized.items())
        found.append(
            f"Weights that were quantised ({each}) are not those of the model that they were made "
            "of."
        )
    for task, sides in comparison.discoveries.items():
        for side, discovery in sides.items():
            the_model = f"The {side} model" if comparison.is_pair else "The model"
            if discovery.accuracy < ACCURACY_FLOOR:
                found.append(
                    f"{the_model} answers {percent(discovery.accuracy)} of the {task} prompts "
                    "right; a circuit of a behaviour that is not quite there means less."
                )
            for granularity, one in discovery.circuits.items():
                if one.faithfulness_high < discovery.config.target:
                    found.append(
                        f"{the_model}'s circuit of {task} ({UNITS[granularity]}) was sized at "
                        f"{one.faithfulness_sizing:.3f} of the behaviour, but recovers "
                        f"{faithfulness_words(one)}."
                    )
                elif one.measured_on == "sizing":
                    found.append(
                        f"{the_model}'s circuit of {task} ({UNITS[granularity]}) recovers "
                        f"{faithfulness_words(one)}."
                    )
    return found


def _warnings_of_pair(comparison: Comparison) -> list[str]:
    found = []
    dense, sparse = (comparison.models[side].ce for side in comparison.sides)
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
    if dense is None or sparse is None:
        found.append("Cross-entropy was not measured: no held-out text was given.")
    elif "sparse" not in others and sparse > dense + CE_TOLERANCE:
        found.append(
            f"The sparse model is worse: its cross-entropy is {sparse - dense:.4f} nats above the "
            f"dense model's ({sparse:.4f} against {dense:.4f})."
        )
    return found


def faithfulness_words(one: Evidence) -> str:
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
