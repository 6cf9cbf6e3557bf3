"""What `circuits compare` and `circuits discover` say and do about finished parts of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.cli.console import say

if TYPE_CHECKING:
    from circuits.comparison.parts import KeptParts
    from circuits.progress import Steps

Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on from what an interrupted run of this command left in OUT.parts."
    ),
]


def parts_of(out: Path, resume: bool) -> Path:
    """Returns the folder next to `out` for finished parts.

    Raises:
        ValueError: an interrupted run has left some there, and it was not said to go on from them.
        OSError: there can be no such folder.
    """
    from circuits.comparison.parts import part_files
    from circuits.files import check_folder

    out = out.resolve()
    folder = out.with_name(f"{out.name}.parts")
    check_folder(folder)
    present = part_files(folder)
    if present and not resume:
        raise ValueError(
            f"{folder} holds {_counted(len(present))} of a search that did not end; go on from "
            "there with --resume, or delete that folder to begin anew"
        )
    return folder


def _counted(n_parts: int) -> str:
    return f"{n_parts} finished part{'s' if n_parts > 1 else ''}"


def telling(
    step: Steps, work_of_part: float, folder: Path, *, resume: bool
) -> Callable[[KeptParts], None]:
    """Returns what a search calls with the finished parts: their work will not be done.

    Where it was said to go on from them, it says which there are, and which of them do not fit.
    """

    def tell(kept: KeptParts) -> None:
        step.leave_out(len(kept.discoveries) * work_of_part)
        if not resume:
            return
        say(f"{len(kept.discoveries)} of {kept.n_wanted} parts are kept from before")
        for name, why in kept.refused.items():
            say(f"{folder.name}/{name} is not used: {why}")

    return tell


@contextmanager
def told_of_parts(folder: Path) -> Iterator[None]:
    """Says on any failure what is not lost."""
    from circuits.comparison.parts import part_files

    try:
        yield
    except BaseException:
        if n_parts := len(part_files(folder)):
            say(f"{_counted(n_parts)} kept in {folder}; the same command with --resume goes on")
        raise
