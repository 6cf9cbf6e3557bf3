"""The part of the report that answers: both circuits and their heads' attention, chosen by hand.

Every diagram is made here, once for each task and granularity; the page's script (page.js) shows
the one that is asked for. A head that is clicked, or chosen from the list, shows its attention in
both models on the chosen prompt; attention edges are drawn over that prompt's tokens. Without the
script all tables can still be read.
"""

from __future__ import annotations

import json
from typing import Any

from circuits.figures import COLOURS, UNITS, arcs_figure, circuit_figure, token_labels
from circuits.figures.style import PAGE_CONFIG
from circuits.results.comparison import SIDES, AttentionExample, Comparison

MOST_NUMBERS = 400_000
"""Numbers in all attention patterns of the page; with more, only heads of the circuits are kept."""


def as_script_data(data: Any) -> str:
    """Returns data as JSON that no text in it can break out of, whatever the text."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def explorer_data(comparison: Comparison) -> dict[str, Any]:
    """Returns everything that the script shows, by task."""
    return {
        "colours": COLOURS,
        "config": PAGE_CONFIG,
        "units": UNITS,
        "tasks": {task: _task_data(comparison, task) for task in comparison.discoveries},
    }


def _task_data(comparison: Comparison, task: str) -> dict[str, Any]:
    found, examples = comparison.discoveries[task], comparison.examples.get(task, ())
    known = [str(name) for name in found["dense"].found]
    # Attention edges are drawn over the tokens of a prompt; where there is none, as nodes.
    with_arcs = "attention_edge" in known and bool(examples)
    diagrams, heads = {}, {}
    for granularity in sorted(known, key=lambda name: name != "edge"):
        circuits = [found[side].found[granularity].circuit for side in SIDES]
        heads[granularity] = sorted({name for circuit in circuits for name in circuit.heads})
        if granularity == "attention_edge" and with_arcs:
            figures = [arcs_figure(comparison, task, prompt) for prompt in range(len(examples))]
        else:
            figures = [circuit_figure(comparison, task, granularity)]
        diagrams[granularity] = [json.loads(str(figure.to_json())) for figure in figures]
    wanted = {name for names in heads.values() for name in names}
    n_all = sum(len(several) for several in comparison.examples.values())
    return {
        "diagrams": diagrams,
        "heads": heads,
        "examples": [_example_data(example, wanted, n_all) for example in examples],
    }


def _example_data(example: AttentionExample, wanted: set[str], n_all: int) -> dict[str, Any]:
    """A prompt's tokens and patterns: of all heads, or of those wanted where they are too many."""
    n_heads = sum(len(layer) for side in SIDES for layer in example.patterns[side])
    every = n_heads * len(example.clean) ** 2 * n_all <= MOST_NUMBERS
    return {
        "tokens": token_labels(example.clean),
        "text": " ".join(token.strip() for token in example.clean),
        "answer": example.answer,
        "patterns": {
            side: {
                # In thousandths, and without the positions that a query cannot see: half the size.
                f"a{layer}.h{head}": [
                    [round(1000 * share) for share in query[: place + 1]]
                    for place, query in enumerate(pattern)
                ]
                for layer, layer_patterns in enumerate(example.patterns[side])
                for head, pattern in enumerate(layer_patterns)
                if every or f"a{layer}.h{head}" in wanted
            }
            for side in SIDES
        },
    }
