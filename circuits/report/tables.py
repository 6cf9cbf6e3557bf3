"""The report's tables: whole in CSV files, and as a person reads them on the page.

On the page an estimate stands with its interval in one cell, and what is the same in every row
stands once, under the table.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from circuits.figures import UNITS
from circuits.names import spaced
from circuits.numbers import percent, sized
from circuits.report.columns import COLUMNS
from circuits.results.comparison import ONLY, Comparison

TABLES = (
    *("summary", "models", "others", "seeds", "evidence"),
    *("stability", "overlap", "transfer", "structure", "roles"),
)
TABLES_OF_ONE = ("models", "evidence", "stability", "structure", "roles")
SIZES = ("dense", "sparse", "size", "prefix", "prefix_dense", "prefix_sparse", "components")
"""Columns that hold sizes, whole or as means: written as in the rest of the page."""
_SAID_ONCE = (
    *("p", "interval", "note", "target", "measured_on", "prompts", "pruned", "minimal"),
    *("faithfulness_interval", "context", "tokenizer", "components"),
)
"""Columns that stand under the table where every row has the same value."""


class Cell(NamedTuple):
    """What stands in a cell, and the value that its column is sorted by."""

    text: str
    value: str | float


class Head(NamedTuple):
    """A column's name, what it means, and whether it holds text."""

    text: str
    meaning: str
    is_text: bool


class Table(NamedTuple):
    """A table as the page shows it, and all of it as CSV."""

    heads: list[Head]
    rows: list[list[Cell]]
    same: list[tuple[str, str]]
    csv: str


def tables_of(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Returns all tables by name; of one model those that compare nothing."""
    names = TABLES if comparison.is_pair else TABLES_OF_ONE
    return {name: getattr(comparison, f"{name}_table")() for name in names}


def page_table(frame: pd.DataFrame) -> Table:
    """Returns a table as the page shows it; one without a row has no columns either."""
    if frame.empty:
        return Table([], [], [], "")
    whole = frame
    if "model" in frame and set(frame["model"]) == {ONLY}:
        frame = frame.drop(columns="model")  # The page of a model alone speaks of no other.
    nothing_pruned = "minimal" in frame and all(map(pd.isna, frame["minimal"]))
    if nothing_pruned:
        left_out = [name for name in frame if str(name).startswith(("prefix", "pruned", "minimal"))]
        frame = frame.drop(columns=left_out)
    # An interval stands with its estimate, or, where a table has none, as a column of its own.
    names = list(
        dict.fromkeys(
            str(name).removesuffix("_low")
            for name in frame
            if not (str(name).endswith("_high") and f"{str(name)[:-5]}_low" in frame)
        )
    )
    once = [
        name
        for name in names
        if name in _SAID_ONCE and len(frame) > 1 and _is_constant(frame[name])
    ]
    shown = [name for name in names if name not in once]
    records = frame.to_dict("records")
    return Table(
        heads=[
            Head(
                spaced(name),
                COLUMNS.get(name, ""),
                any(isinstance(row.get(name), str) for row in records),
            )
            for name in shown
        ],
        rows=[[_cell(name, row) for name in shown] for row in records],
        same=[(spaced(name), text) for name in once if (text := in_words(name, records[0][name]))],
        csv=whole.to_csv(index=False),
    )


def roles_by_head(comparison: Comparison) -> pd.DataFrame:
    """Returns which heads of the circuits have which role: a row a task and role."""
    columns = {side: f"{side}_heads" for side in comparison.sides}
    if not comparison.is_pair:
        columns = dict.fromkeys(comparison.sides, "heads")
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for role in comparison.roles:
        if role.in_circuit:
            key = (role.task, role.role or "none of these")
            rows.setdefault(key, {side: [] for side in columns})[role.model].append(role.head)
    # Heads without a role are the last of their task.
    ordered = sorted(rows.items(), key=lambda row: row[0][1] == "none of these")
    tasks = list(comparison.discoveries)
    return pd.DataFrame(
        [
            {"task": task, "role": spaced(name)}
            | {columns[side]: ", ".join(heads) for side, heads in by_side.items()}
            for (task, name), by_side in sorted(ordered, key=lambda row: tasks.index(row[0][0]))
        ]
    )


def run_table(comparison: Comparison) -> pd.DataFrame:
    """Returns how the comparison was made, a row a fact."""
    rows = []
    for name, value in comparison.run.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        rows.append({"run": name, "value": str(value)})
    return pd.DataFrame(rows)


def _is_constant(column: Any) -> bool:
    return column.nunique(dropna=False) == 1


def _cell(name: str, row: dict[Any, Any]) -> Cell:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    value = row.get(name, low)
    has_interval = low is not None and not math.isnan(low)
    interval = f"[{in_words(name, low)}, {in_words(name, high)}]" if has_interval else ""
    text = in_words(name, value) if name in row else interval or "-"
    if isinstance(value, str):
        return Cell(text, value)
    if name in row and interval:
        text = f"{text} {interval}"
    return Cell(text, -math.inf if value is None or math.isnan(value) else float(value))


def in_words(column: str, value: Any) -> str:
    """Returns a value as a person reads it; the CSV files hold it in full."""
    if isinstance(value, str):
        return UNITS.get(value, value) if column == "granularity" else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or math.isnan(value):
        return "-"
    if column in ("accuracy", "density", "target"):
        return percent(value)
    if column == "ce":  # Twins differ in the third decimal.
        return f"{value:.4f}"
    if math.isinf(value):
        return "∞"
    is_size = float(value).is_integer() or column in SIZES or abs(value) >= 100
    return sized(value) if is_size else f"{value:.3g}"
