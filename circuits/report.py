"""The one place that writes results: tables, circuits, figures and a self-contained report.

Everything is written into a temporary folder beside the one asked for and renamed at the end, so
a folder with results in it is always a whole one.
"""

from __future__ import annotations

import html
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from circuits.comparison import SIDES, Comparison, save_comparison, size_ratio
from circuits.figures import (
    UNITS,
    attention_figure,
    circuit_figure,
    density_figure,
    faithfulness_figure,
    sizes_figure,
)
from circuits.files import write_text

MARKER = "comparison.json"
CE_TOLERANCE = 0.01
ACCURACY_FLOOR = 0.95

_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #f4f4f2; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #222; --warn: #4a3a10; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--line);
padding-top: 1rem; }
.scroll { overflow-x: auto; } .figure { background: white; border-radius: 6px; margin: 1rem 0;
overflow-x: auto; } .figure > div { min-width: 720px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
white-space: nowrap; } th:first-child, td:first-child, td.text { text-align: left; }
thead { background: var(--soft); } code { background: var(--soft); padding: .1em .3em; }
.warning { background: var(--warn); padding: .6rem 1rem; border-radius: 6px; }
"""


def check_writable(out: str | Path) -> None:
    """Refuses a folder that results cannot be written to, before any long work.

    Raises:
        FileExistsError: `out` is a file, or a folder of something else.
        FileNotFoundError: the folder that it should stand in does not exist.
        PermissionError: that folder cannot be written to.
    """
    out = Path(out).absolute()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; give a folder for the results")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise FileExistsError(
            f"{out} holds other files and no {MARKER}, so it is not replaced; "
            "give a new or empty folder"
        )
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} into")
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"no permission to write into {out.parent}")


def write_results(comparison: Comparison, out: str | Path) -> None:
    """Writes tables, circuits, figures and `report.html` into the folder `out`.

    A folder written by an earlier comparison is replaced; if writing fails, it stays as it was.

    Raises:
        OSError: see `check_writable`.
    """
    out = Path(out).absolute()
    check_writable(out)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        beside.chmod(0o755)
        _write_all(comparison, beside)
        if out.exists():
            old = beside / ".old"
            os.rename(out, old)
            os.rename(beside, out)
            shutil.rmtree(out / ".old")
        else:
            os.rename(beside, out)
    except BaseException:
        if (beside / ".old").exists() and not out.exists():
            os.rename(beside / ".old", out)
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _write_all(comparison: Comparison, folder: Path) -> None:
    for name, frame in _tables(comparison).items():
        write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    (folder / "circuits").mkdir()
    for task, found in comparison.discoveries.items():
        for side, discovery in found.items():
            for granularity, one in discovery.found.items():
                one.circuit.save(folder / "circuits" / f"{task}.{side}.{granularity}.json")
    (folder / "figures").mkdir()
    figures = dict(_figures(comparison))
    for name, figure in figures.items():
        figure.write_html(folder / "figures" / f"{name}.html", include_plotlyjs="directory")
    write_text(folder / "report.html", report_html(comparison, figures))
    save_comparison(comparison, folder / MARKER)


def _tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    return {
        "summary": comparison.summary_table(),
        "models": comparison.models_table(),
        "evidence": comparison.evidence_table(),
        "overlap": comparison.overlap_table(),
        "structure": comparison.structure_table(),
    }


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
    """Returns what was found, a plain sentence for each task and granularity."""
    sentences = []
    for task, found in comparison.discoveries.items():
        for granularity in found["dense"].found:
            dense, sparse = (found[side].found[granularity] for side in SIDES)
            ratio, low, high = size_ratio(dense, sparse)
            unit = UNITS[granularity]
            sentence = (
                f"{task}: {found['dense'].config.target:.0%} of the behaviour takes "
                f"{dense.size:.4g} {unit} in the dense model and {sparse.size:.4g} in the sparse "
                f"one (ratio {ratio:.2g}, 95 % interval {low:.2g} to {high:.2g})"
            )
            if math.isnan(low) or low <= 1 <= high:
                sentence += "; no clear difference"
            elif ratio < 1:
                sentence += "; the sparse model needs more"
            sentences.append(sentence + ".")
    return sentences


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
        "<ul>" + "".join(f"<li>{_safe(one)}</li>" for one in headlines(comparison)) + "</ul>",
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
        *(
            _figure(figures[f"{task}.faithfulness"]) for task in comparison.discoveries
        ),
        "<p>Beside each size: its interval over prompts, how many components hold the target's "
        "share of all absolute attribution (no intervention), faithfulness without the component "
        "added last and of random circuits of the same size, and MIB's areas (cpr: under the "
        "curve; cmd: between the curve and 1).</p>",
        _table(tables["evidence"]),
        "<h2>4. What do they look like?</h2>",
        "<p>Dark nodes are in both circuits, yellow ones in this one only. Green edges support "
        "the behaviour, pink ones counter it. Point at a node or at the middle of an edge.</p>",
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
        "<p>Shape of the circuits of edges:</p>",
        _table(tables["structure"]),
        "<h2>5. How this was made</h2>",
        "<p>Faithfulness of a circuit C is (m(C) - m(empty)) / (m(full) - m(empty)), where m is "
        "the task's metric, averaged over held-out prompts. Ablated components write what they "
        "write on the corrupted prompt (corrupted), their mean over clean prompts (mean) or "
        "nothing (zero). Intervals are 95 % bootstrap intervals over held-out prompts, drawn "
        "within each template and shared by both models; they do not speak of training seeds.</p>",
        _table(_run_table(comparison)),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Circuits, dense and sparse</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>\n{body}\n</body></html>\n"
    )


def _run_table(comparison: Comparison) -> pd.DataFrame:
    rows = []
    for name, value in comparison.run.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        rows.append({"run": name, "value": str(value)})
    return pd.DataFrame(rows)


def _figure(figure: go.Figure) -> str:
    inner = figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True})
    return f'<div class="figure">{inner}</div>'


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{_safe(str(name))}</th>" for name in frame.columns)
    rows = []
    for row in frame.itertuples(index=False):
        cells = "".join(
            f'<td class="text">{_safe(value)}</td>'
            if isinstance(value, str)
            else f"<td>{_safe(_number(value))}</td>"
            for value in row
        )
        rows.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: float | int | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) >= 10
        return f"{value:.0f}" if whole else f"{value:.3g}"
    return str(value)


def _safe(text: str) -> str:
    return html.escape(text)
