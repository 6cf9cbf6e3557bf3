"""The one place that writes results: tables, circuits, figures and a self-contained report.

The folder takes its place when everything in it is written, so a folder with results in it is
always a whole one.
"""

from __future__ import annotations

import os
from pathlib import Path

from circuits.figures.style import PAGE_CONFIG
from circuits.files import check_folder, file_name_of, replace_folder, write_text
from circuits.report.page import figures_of, report_html
from circuits.report.tables import TABLES, tables_of
from circuits.results.comparison import Comparison
from circuits.results.comparison_file import save_comparison
from circuits.results.discovery import RESULTS_FILE

_WRITTEN = {
    RESULTS_FILE,
    "report.html",
    "circuits",
    "figures",
    *(f"{name}.csv" for name in TABLES),
}


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
    check_folder(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out.parent} to write {out.name} into; make it first"
        )
    if out.is_dir():
        present = {path.name for path in out.iterdir()}
        # The marker alone would not do: replacing a folder deletes everything in it.
        foreign = sorted(present - _WRITTEN)
        if present and (foreign or RESULTS_FILE not in present):
            why = f"such as {foreign[0]}" if foreign else f"and no {RESULTS_FILE}"
            raise FileExistsError(
                f"{out} holds other files, {why}, so it is not replaced; give a new or empty folder"
            )
        if os.path.ismount(out):
            raise PermissionError(f"{out} is a mount point and cannot be replaced; give a folder "
                                  "inside it")  # fmt: skip
    check_folder(out.parent)  # The new folder is renamed into it.


def write_results(comparison: Comparison, out: str | Path) -> None:
    """Writes tables, circuits, figures and `report.html` into the folder `out`.

    Of one model alone (`circuits.comparison.study_model`) these are the tables and figures that
    compare nothing. A folder written by an earlier comparison is replaced; if writing fails, it
    stays as it was.

    Raises:
        OSError: see `check_writable`.
    """
    out = Path(out).resolve()
    check_writable(out)
    with replace_folder(out) as new:
        _write_all(comparison, new)


def _write_all(comparison: Comparison, folder: Path) -> None:
    for name, frame in tables_of(comparison).items():
        write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    (folder / "circuits").mkdir()
    for task, found in comparison.discoveries.items():
        for side, discovery in found.items():
            for granularity, one in discovery.circuits.items():
                name = file_name_of(f"{task}.{side.replace('.', '_')}.{granularity}.json")
                one.circuit.save(folder / "circuits" / name)
    (folder / "figures").mkdir()
    figures = dict(figures_of(comparison))
    for name, figure in figures.items():
        path = folder / "figures" / f"{file_name_of(name)}.html"
        figure.write_html(path, include_plotlyjs="directory", config=PAGE_CONFIG)
    write_text(folder / "report.html", report_html(comparison, figures))
    save_comparison(comparison, folder / RESULTS_FILE)
