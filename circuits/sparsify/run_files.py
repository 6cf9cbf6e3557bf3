"""What a run writes into its folder besides checkpoints: run.json, recipe.toml, log, page.

The first process writes; the others call the same and write nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from circuits.files import write_json
from circuits.gate.card import read_json
from circuits.recipe import RECIPE_FILE, write_recipe
from circuits.sparsify.checkpoint import CHECKPOINTS, cut_log, resumable_write
from circuits.sparsify.training_page import TRAINING_PAGE, write_training_page
from circuits.sparsify.training_page.run_folder import LOG_FILE, RUN_FILE

SHOWN_EVERY = 60.0
"""Seconds between two pages of a run that goes on, at least."""
_OF_THE_END = ("result", "stopped")


class RunFiles:
    """The files of one run.

    Attributes:
        folder: the run's folder.
        checkpoints: where its checkpoints lie.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.folder, self.checkpoints = folder, folder / CHECKPOINTS
        self._writes = writes
        self._shown_at = time.monotonic()

    def begin(
        self,
        identity: Mapping[str, Any] | None,
        start: Mapping[str, Any],
        recipe: Mapping[str, Any],
        last_step: int,
    ) -> None:
        """Writes what a run begins or goes on with.

        Args:
            identity: what a resumed run must agree with; None for one that goes on.
            start: what is noted of how it was begun, or gone on with.
            recipe: what makes the run again.
            last_step: the step up to which the log is kept.
        """
        if not self._writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if identity is not None:
            write_json(self.folder / RUN_FILE, {**identity, "start": start})
        path = self.folder / RECIPE_FILE
        with resumable_write(path, self.checkpoints):
            write_recipe(path, recipe)
        if identity is None:
            # What the run had come to is no longer so until it ends again.
            before = read_json(self.folder / RUN_FILE)
            kept = {name: one for name, one in before.items() if name not in _OF_THE_END}
            self._write_run_file(kept | {"start": start})
        cut_log(self.folder / LOG_FILE, last_step)

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to the log."""
        if not self._writes:
            return
        path = self.folder / LOG_FILE
        with resumable_write(path, self.checkpoints), path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")

    def show(self) -> None:
        """Writes the run's page as it stands, unless that was done a short while ago."""
        if self._writes and time.monotonic() - self._shown_at > SHOWN_EVERY:
            # Where there is no room for it, what matters more will say so.
            with suppress(OSError):
                write_training_page(self.folder)
            self._shown_at = time.monotonic()

    def end(self, result: Mapping[str, Any]) -> None:
        """Writes what the run came to next to what it is, and its page."""
        if not self._writes:
            return
        self._write_run_file(read_json(self.folder / RUN_FILE) | {"result": result})
        with resumable_write(self.folder / TRAINING_PAGE, self.checkpoints):
            write_training_page(self.folder)

    def stop(self, step: int, why: str) -> None:
        """Notes that the run stops before its end, and writes its page."""
        path = self.folder / RUN_FILE
        if self._writes and path.is_file():
            with suppress(OSError):  # It may be what stops the run.
                write_json(path, read_json(path) | {"stopped": {"step": step, "why": why}})
                write_training_page(self.folder)

    def _write_run_file(self, content: Mapping[str, Any]) -> None:
        path = self.folder / RUN_FILE
        with resumable_write(path, self.checkpoints):
            write_json(path, content)
