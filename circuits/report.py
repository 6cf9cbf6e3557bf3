"""The one place that writes results: tables, circuits, figures and a self-contained report.

Everything is written into a temporary folder beside the one asked for and renamed at the end, so
a folder with results in it is always a whole one.
"""

from __future__ import annotations

import html
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from circuits.comparison import SIDES, Comparison, save_comparison, size_ratio
from circuits.figures import (
    attention_figure,
    circuit_figure,
    counted,
    density_figure,
    faithfulness_figure,
    rounded,
    sizes_figure,
)
from circuits.files import write_text

MARKER = "comparison.json"
_TABLES = (
    *("summary", "models", "others", "evidence"),
    *("overlap", "transfer", "structure", "roles"),
)
_WRITTEN = {MARKER, "report.html", "circuits", "figures", *(f"{name}.csv" for name in _TABLES)}
_PLOTLY = {"responsive": True, "displaylogo": False}
CE_TOLERANCE = 0.01
ACCURACY_FLOOR = 0.95

_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #f4f4f2; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #222; --warn: #4a3a10; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } .headlines { font-size: 1.05em; overflow-wrap: anywhere; }
p { max-width: 75ch; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.scroll { overflow-x: auto; } .figure { background: white; border-radius: 6px; margin: 1rem 0;
overflow-x: auto; } .figure > div { min-width: 720px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
white-space: nowrap; } th:first-child, td:first-child, th.text, td.text { text-align: left; }
.wrap td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
thead { background: var(--soft); } code { background: var(--soft); padding: .1em .3em; }
.warning { background: var(--warn); padding: .6rem 1rem; border-radius: 6px; }
"""

_DEFINITIONS = """
<p><b>Faithfulness.</b> Let m be the task's metric, averaged over held-out prompts. A circuit's
faithfulness is (m(circuit) - m(empty)) / (m(full) - m(empty)): 1 if it does as well as the whole
model, 0 if it does no better than the model with everything ablated. Every value comes from
running the model with everything outside the circuit ablated, none from adding up scores.</p>
<p><b>Ablation.</b> What an ablated component writes is replaced: by what it writes on the
corrupted twin of the prompt (<code>corrupted</code>), by its mean at that position over the
prompts of the same template (<code>mean</code>), or by nothing (<code>zero</code>). The one used
here stands in the table below.</p>
<p><b>Interval.</b> The held-out prompts are drawn again with replacement many times, within each
template; an interval holds the middle 95 % of what comes out. Both models share the draws, so the
interval of a ratio is a paired one. It speaks of the choice of prompts only, not of how another
training seed would have come out.</p>
"""


def check_writable(out: str | Path) -> None:
    """Refuses a folder that results cannot be written to, before any long work.

    A new folder, an empty one, and one that holds the results of an earlier comparison and
    nothing else are accepted.

    Raises:
        FileExistsError: `out` is a file, or a folder that holds anything else.
        FileNotFoundError: the folder that it should stand in does not exist.
        PermissionError: it cannot be written or replaced.
    """
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; give a folder for the results")
    if not out.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out.parent} to write {out.name} into; make it first"
        )
    if out.is_dir():
        present = {path.name for path in out.iterdir()}
        # The marker alone would not do: replacing a folder deletes everything in it.
        foreign = sorted(present - _WRITTEN)
        if present and (foreign or MARKER not in present):
            why = f"such as {foreign[0]}" if foreign else f"and no {MARKER}"
            raise FileExistsError(
                f"{out} holds other files, {why}, so it is not replaced; give a new or empty folder"
            )
        if os.path.ismount(out):
            raise PermissionError(f"{out} is a mount point and cannot be replaced; give a folder "
                                  "inside it")  # fmt: skip
    for folder in (out.parent, out):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write into {folder}; give another folder")


def write_results(comparison: Comparison, out: str | Path) -> None:
    """Writes tables, circuits, figures and `report.html` into the folder `out`.

    A folder written by an earlier comparison is replaced; if writing fails, it stays as it was.

    Raises:
        OSError: see `check_writable`.
    """
    out = Path(out).resolve()
    check_writable(out)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir(mode=0o755)
        _write_all(comparison, new)
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    finally:
        if old.exists() and not out.exists():
            os.rename(old, out)
        shutil.rmtree(beside, ignore_errors=True)


def _write_all(comparison: Comparison, folder: Path) -> None:
    for name, frame in _tables(comparison).items():
        write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    (folder / "circuits").mkdir()
    for task, found in comparison.discoveries.items():
        for side, discovery in found.items():
            for granularity, one in discovery.found.items():
                name = f"{_file_name(task)}.{side}.{granularity}.json"
                one.circuit.save(folder / "circuits" / name)
    (folder / "figures").mkdir()
    figures = dict(_figures(comparison))
    for name, figure in figures.items():
        path = folder / "figures" / f"{_file_name(name)}.html"
        figure.write_html(path, include_plotlyjs="directory")
    write_text(folder / "report.html", report_html(comparison, figures))
    save_comparison(comparison, folder / MARKER)


def _file_name(name: str) -> str:
    """A task's name without what a path would read as folders."""
    return re.sub(r"[^\w.-]", "_", name)


def _tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    return {name: getattr(comparison, f"{name}_table")() for name in _TABLES}


def _figures(comparison: Comparison) -> Iterator[tuple[str, go.Figure]]:
    yield "density", density_figure(comparison)
    yield "sizes", sizes_figure(comparison)
    for task, found in comparison.discoveries.items():
        yield f"{task}.faithfulness", faithfulness_figure(comparison, task)
        granularity = "edge" if "edge" in found["dense"].found else next(iter(found["dense"].found))
        yield f"{task}.circuits", circuit_figure(comparison, task, granularity)
        if task in comparison.examples:
            yield f"{task}.attention", attention_figure(comparison, task)


def headlines(comparison: Comparison) -> list[str]:
    """Returns what was found, a plain sentence for each task and granularity.

    Within a task edges come first: they are the finest components that both circuits share.
    """
    sentences = []
    for task, found in comparison.discoveries.items():
        for granularity in sorted(found["dense"].found, key=lambda name: name != "edge"):
            dense, sparse = (found[side].found[granularity] for side in SIDES)
            sentences.append(
                f"{task}: {100 * found['dense'].config.target:.4g} % of the behaviour takes "
                f"{counted(dense.size, granularity)} in the dense model and {sparse.size:.4g} in "
                f"the sparse one{_verdict(*size_ratio(dense, sparse))}."
            )
    return sentences


def _verdict(ratio: float, low: float, high: float) -> str:
    """The ratio in words; one whose interval holds 1 is no difference, whatever it is."""
    if math.isnan(ratio):
        return "; no clear difference"
    if math.isnan(low):
        return f" (ratio {rounded(ratio)}, no interval); no clear difference"
    text = f" (ratio {rounded(ratio)}, 95 % interval {rounded(low)} to {rounded(high)})"
    if low <= 1 <= high:
        return f"{text}; no clear difference: the interval includes 1"
    return text if ratio > 1 else f"{text}; the sparse model needs more"


def warnings_of(comparison: Comparison) -> list[str]:
    """Returns what a reader must know before believing the ratios."""
    found = []
    dense, sparse = (comparison.models[side].ce for side in SIDES)
    if dense is None or sparse is None:
        found.append("Cross-entropy was not measured: no held-out text was given.")
    elif sparse > dense + CE_TOLERANCE:
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
    return found


def report_html(comparison: Comparison, figures: dict[str, go.Figure]) -> str:
    """Returns the whole report as one HTML page that needs no network."""
    tables = _tables(comparison)
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
        "<p>Accuracy and metric on held-out prompts; cross-entropy (ce) in nats per token and "
        "density on held-out text of <code>context</code> tokens.</p>",
        _table(tables["models"]),
        "<h2>2. How sparse is the sparse one?</h2>",
        "<p>A query may attend to every earlier position; the gate leaves few of these attention "
        "edges open. A dense model leaves all of them open.</p>",
        _figure(figures["density"]),
        "<h2>3. How big are the circuits?</h2>",
        "<p>Components are ranked on one set of prompts. On another set the model is run with "
        "only the first so many of them intact and everything else ablated. The circuit is the "
        "smallest that recovers the target. Ratio: dense over sparse.</p>",
        _table(tables["summary"]),
        _figure(figures["sizes"]),
        *(_figure(figures[f"{task}.faithfulness"]) for task in comparison.discoveries),
        "<p>Beside each size: its interval over prompts, how many components hold the target's "
        "share of all absolute attribution (no intervention), faithfulness without the component "
        "added last, of the rest (everything outside the circuit; near 0 if the circuit is "
        "complete) and of random circuits of the same size, and MIB's areas (cpr: under the "
        "curve; cmd: between the curve and 1).</p>",
        _table(tables["evidence"]),
        "<h2>4. Do controls say the same?</h2>",
        "<p>The dense model against every other one: its size over theirs. A model that does not "
        "do the task has no circuit, and the note says why.</p>",
        _table(tables["others"]),
        "<h2>5. What do they look like?</h2>",
        "<p>Layers run from the bottom to the top, and a node has the same place in both "
        "diagrams. An edge is the wider the stronger its score. Point at a node or at the middle "
        "of an edge for its name and score. The attention patterns are those after the gate.</p>",
    ]
    for task in comparison.discoveries:
        parts.append(_figure(figures[f"{task}.circuits"]))
        if f"{task}.attention" in figures:
            example = comparison.examples[task]
            parts.append(
                f"<p>Prompt: <code>{_safe(' '.join(t.strip() for t in example.clean))}</code>, "
                f"answer <code>{_safe(example.answer)}</code>.</p>"
            )
            parts.append(_figure(figures[f"{task}.attention"]))
    parts += [
        "<p>Overlap of the two circuits, components matched by name:</p>",
        _table(tables["overlap"]),
        "<p>Each circuit, run in the other model on held-out prompts. Own: what the circuit that "
        "was found in that model recovers; random: what random circuits of this size do.</p>",
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
        f"<title>Circuits, dense and sparse</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>\n{body}\n</body></html>\n"
    )


def _role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    inside = roles[roles["in_circuit"].astype(bool)].replace({"role": {"": "none of these"}})
    counts: Any = inside.groupby(["task", "model", "role"], sort=False).size()
    return counts.unstack(fill_value=0).reset_index() if len(inside) else pd.DataFrame()


def _run_table(comparison: Comparison) -> pd.DataFrame:
    rows = []
    for name, value in comparison.run.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        rows.append({"run": name, "value": str(value)})
    return pd.DataFrame(rows)


def _figure(figure: go.Figure) -> str:
    inner = figure.to_html(full_html=False, include_plotlyjs=False, config=_PLOTLY)
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
