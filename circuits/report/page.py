"""The report: a comparison as one HTML page that tells the story from top to bottom.

The page holds its style, its script, plotly and all data, and needs no network. Whatever comes from
data is escaped.
"""

from __future__ import annotations

import html
import importlib.resources
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from circuits.figures import (
    arcs_figure,
    attention_figure,
    circuit_figure,
    density_figure,
    faithfulness_figure,
    head_density_figure,
    sizes_figure,
)
from circuits.figures.style import PAGE_CONFIG
from circuits.report.explorer import explorer_html
from circuits.report.words import headlines, warnings_of
from circuits.results.comparison import SIDES, Comparison

TABLES = (
    *("summary", "models", "others", "seeds", "evidence"),
    *("overlap", "transfer", "structure", "roles"),
)

_DEFINITIONS = """
<p><b>Three sets of prompts.</b> Components are ranked on the first. The size of the circuit is the
smallest from which every larger size tried recovers the target on the second. What the circuit
recovers is measured on the third: fresh prompts, which took no part in finding it, so it may be
less than the target. Attention edges of prompts that have no template in common with fresh ones are
measured on those that they were found on; <code>measured on</code> then says sizing.</p>
<p><b>Faithfulness.</b> Let m be the task's metric, averaged over the prompts. A circuit's
faithfulness is (m(circuit) - m(empty)) / (m(full) - m(empty)): 1 if it does as well as the whole
model, 0 if it does no better than the model with everything ablated. Every value comes from
running the model with everything outside the circuit ablated, none from adding up scores.</p>
<p><b>Ablation.</b> What an ablated component writes is replaced: by what it writes on the
corrupted twin of the prompt (<code>corrupted</code>), by its mean at that position over the
prompts of the same template (<code>mean</code>), or by nothing (<code>zero</code>). The one used
here stands in the table below.</p>
<p><b>Interval.</b> The prompts are drawn again with replacement many times; an interval holds the
middle 95 % of what comes out. They are drawn within templates where each has five prompts or more,
else from all prompts; the column <code>interval</code> says which, or why there is none. Both
models share the draws, so the interval of a ratio is a paired one. Sizes are whole numbers: where
every resample has the same size, its interval has no width, which is not certainty; the column
<code>note</code> says so. An interval speaks of the choice of prompts only: that of a size, of the
prompts to size on; that of faithfulness, of those to report on. None says how another training seed
would have come out.</p>
"""


def tables_of(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Returns all tables by name."""
    return {name: getattr(comparison, f"{name}_table")() for name in TABLES}


def figures_of(comparison: Comparison) -> Iterator[tuple[str, go.Figure]]:
    """Yields all figures with their names."""
    yield "density", density_figure(comparison)
    yield "density_per_head", head_density_figure(comparison)
    yield "sizes", sizes_figure(comparison)
    for task, found in comparison.discoveries.items():
        yield f"{task}.faithfulness", faithfulness_figure(comparison, task)
        granularity = "edge" if "edge" in found["dense"].found else next(iter(found["dense"].found))
        yield f"{task}.circuits", circuit_figure(comparison, task, granularity)
        if task in comparison.examples:
            yield f"{task}.attention", attention_figure(comparison, task)
            if "attention_edge" in found["dense"].found:
                yield f"{task}.arcs", arcs_figure(comparison, task)


def report_html(comparison: Comparison, figures: dict[str, go.Figure]) -> str:
    """Returns the whole report as one HTML page that needs no network."""
    tables = tables_of(comparison)
    dense, sparse = (comparison.models[side] for side in SIDES)
    parts = [
        "<h1>The circuits of a dense model and of its sparse twin</h1>",
        f"<p>Dense: <code>{_safe(dense.name)}</code>, {dense.n_parameters:,} weights. "
        f"Sparse: <code>{_safe(sparse.name)}</code>, {sparse.n_parameters:,} weights.</p>",
        '<ul class="headlines">',
        *(f"<li>{_safe(one)}</li>" for one in headlines(comparison)),
        "</ul>",
        *(f'<p class="warning">{_safe(one)}</p>' for one in warnings_of(comparison)),
        "<h2>1. Are the models equally good?</h2>",
        "<p>Accuracy and metric on the reporting prompts; cross-entropy (ce) in nats per token and "
        "density on held-out text of <code>context</code> tokens.</p>",
        _table(tables["models"]),
        "<h2>2. How sparse is the sparse one?</h2>",
        "<p>A query may attend to every earlier position; the gate leaves few of these attention "
        "edges open. A dense model leaves all of them open.</p>",
        _figure(figures["density"]),
        _figure(figures["density_per_head"]),
        "<h2>3. How big are the circuits?</h2>",
        "<p>Components are ranked on one set of prompts. On another set the model is run with "
        "only the first so many of them intact and everything else ablated. The circuit is the "
        "smallest from which every larger one tried recovers the target. Its faithfulness is "
        "measured on a third set of prompts. Ratio: dense over sparse.</p>",
        _table(tables["summary"]),
        _figure(figures["sizes"]),
        *(_figure(figures[f"{task}.faithfulness"]) for task in comparison.discoveries),
        "<p>Beside each size: its interval over prompts, the smallest size that reaches the target "
        "at all (first crossing), faithfulness on the prompts that chose the size (faithfulness "
        "sizing; all other values are of fresh prompts), how many components hold the target's "
        "share of all absolute attribution (no intervention), faithfulness without the component "
        "added last, of the rest (everything outside the circuit; near 0 if the circuit is "
        "complete) and of random circuits of the same size, and MIB's areas (cpr: under the "
        "curve; cmd: between the curve and 1).</p>",
        _table(tables["evidence"]),
        "<h2>4. Do controls say the same?</h2>",
        "<p>The dense model against every other one: its size over theirs. A model that does not "
        "do the task has no circuit, and the note says why.</p>",
        _table(tables["others"]),
        *_seeds(tables["seeds"]),
        "<h2>5. What do they look like?</h2>",
        "<p>Layers run from the bottom to the top, and a node has the same place in both "
        "diagrams. An edge is the wider the stronger its score. Point at a node or at the middle "
        "of an edge for its name and score. The attention patterns are those after the gate.</p>",
        explorer_html(comparison),
    ]
    for task, (example, *_) in comparison.examples.items():
        words = " ".join(token.strip() for token in example.clean)
        parts.append(
            f"<p>Attention on one reporting prompt of {_safe(task)}: <code>{_safe(words)}</code>, "
            f"answer <code>{_safe(example.answer)}</code>.</p>"
        )
        parts.append(_figure(figures[f"{task}.attention"]))
        if f"{task}.arcs" in figures:
            parts.append(_figure(figures[f"{task}.arcs"]))
    parts += [
        "<p>Overlap of the two circuits, components matched by name:</p>",
        _table(tables["overlap"]),
        "<p>Each circuit, run in the other model on the reporting prompts. Own: what the circuit "
        "that was found in that model recovers; random: what random circuits of this size do.</p>",
        _table(tables["transfer"]),
        "<p>Shape of the circuits of edges:</p>",
        _table(tables["structure"]),
        "<h2>6. Do their heads do the same?</h2>",
        "<p>Heads of the circuits by what they do: how many have each role, by mean attention of "
        "at least 0.3. The table roles.csv has every head, and its most similar twin.</p>",
        _table(_role_counts(tables["roles"])),
        "<h2>7. How this was made</h2>",
        _DEFINITIONS,
        f'<div class="wrap">{_table(_run_table(comparison))}</div>',
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Circuits, dense and sparse</title><style>{_read('page.css')}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>\n{body}\n"
        f"<script>{_read('page.js')}</script></body></html>\n"
    )


def _seeds(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return []
    said = (
        "<p>The same over training seeds: the geometric mean of the ratio over the sparse model "
        "and its further twins, with Student's 95 % interval. It speaks of the seed of "
        "post-training alone; few seeds make it wide.</p>"
    )
    return [said, _table(table)]


def _role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    inside = roles[roles["in_circuit"].astype(bool)].replace({"role": {"": "none of these"}})
    counts: Any = inside.groupby(["task", "model", "role"], sort=False).size()
    return counts.unstack(fill_value=0).reset_index() if len(inside) else pd.DataFrame()


def _read(name: str) -> str:
    return (importlib.resources.files("circuits.report") / name).read_text(encoding="utf-8")


def _run_table(comparison: Comparison) -> pd.DataFrame:
    rows = []
    for name, value in comparison.run.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        rows.append({"run": name, "value": str(value)})
    return pd.DataFrame(rows)


def _figure(figure: go.Figure) -> str:
    inner = figure.to_html(full_html=False, include_plotlyjs=False, config=PAGE_CONFIG)
    return f'<div class="figure">{inner}</div>'


def _table(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "<p>Nothing to show: no circuit of this kind was looked for.</p>"
    head = "".join(
        f"<th{_class(frame[name].iloc[0])}>{_safe(str(name).replace('_', ' '))}</th>"
        for name in frame.columns
    )
    rows = []
    for row in frame.itertuples(index=False):
        cells = "".join(
            f"<td{_class(value)}>{_safe(_cell(str(name), value))}</td>"
            for name, value in zip(frame.columns, row, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class(value: object) -> str:
    return ' class="text"' if isinstance(value, str) else ""


def _cell(column: str, value: Any) -> str:
    """A value as a person reads it; the CSV files hold it in full."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    if column in ("accuracy", "density", "target"):
        return f"{100 * value:.3g} %"
    if column == "ce":  # Twins differ in the third decimal.
        return f"{value:.4f}"
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def _safe(text: str) -> str:
    return html.escape(text)
