"""What a run's folder holds, as values: its identity, its recipe, its log, and what it came to."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from circuits.reading import read_json, read_text
from circuits.recipe import RECIPE_FILE
from circuits.sparsify.config import TrainConfig

RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """A run, finished or not.

    Attributes:
        path: The folder, as it was given.
        config: The fields of its `TrainConfig`.
        job: What its recipe holds besides, such as model and data; empty for a run from Python.
        data: The description of its token stream.
        start: What was noted when it was last begun: versions, device, the dense model's CE.
        weights: The digest of the dense model's weights.
        result: `TrainResult.summary`; None unless the run is finished.
        stopped: `{"step", "why"}` of a run that was stopped or failed; None if it was not.
        log: The lines of its log, a step each.
    """

    path: Path
    config: Mapping[str, Any]
    job: Mapping[str, Any]
    data: Mapping[str, Any]
    start: Mapping[str, Any]
    weights: str
    result: Mapping[str, Any] | None
    stopped: Mapping[str, Any] | None
    log: list[dict[str, Any]]

    @property
    def is_control(self) -> bool:
        """Whether it has no gate, and so no bound, density or lambda."""
        return not self.config["gate"]

    @property
    def is_by_kl(self) -> bool:
        """Whether KL(dense || sparse) is bounded, and not the CE."""
        return self.config["gate"] and self.config["bound"] == "kl"

    @property
    def bounded(self) -> str:
        """The name in the log of what is bounded, or of what is measured of a control."""
        return "kl" if self.is_by_kl else "ce"

    @property
    def limit(self) -> float | None:
        """The bound on the selection set; None for a control, or where nothing was measured yet."""
        name = "epsilon" if self.is_by_kl else "tau"
        told = next((line[name] for line in self.log if name in line), None)
        return None if self.is_control else told

    @property
    def dense_ce(self) -> float | None:
        """The dense model's CE on the selection set in nats, None where it was not noted."""
        return (self.result or self.start).get("dense_ce")

    @property
    def step(self) -> int:
        """The last step in the log."""
        return self.log[-1]["step"] if self.log else 0

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the log with a measurement of the selection set."""
        return [line for line in self.log if "ce" in line]

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the sparsest state that keeps the bound, of a finished run the result's.

        None if no state has kept it, and for a control.
        """
        evaluations = self.evaluations
        step = evaluations[-1].get("best_step") if evaluations else None
        return next((line for line in evaluations if line["step"] == step), None)

    @property
    def seconds(self) -> float | None:
        """The time that it took, over all resumed parts; None if the log does not say."""
        if self.result is not None and "seconds" in self.result:
            return self.result["seconds"]
        return self.log[-1].get("seconds") if self.log else None


def read_run(folder: str | Path) -> RunFolder:
    """Returns the run in a folder.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: one of its files is damaged; a last line of the log that is cut short is not.
    """
    folder = Path(folder)
    path = folder / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run of `circuits train`: it has no {RUN_FILE}")
    found = read_json(path)
    recipe: dict[str, Any] = {}
    if (folder / RECIPE_FILE).is_file():
        recipe = tomllib.loads(read_text(folder / RECIPE_FILE))
    try:
        known = {field.name for field in fields(TrainConfig)}
        # The recipe leaves out what is None; run.json counts the parts of all processes together.
        config = {name: recipe.get(name, found["config"].get(name)) for name in known}
        return RunFolder(
            path=folder,
            config=config,
            job={name: value for name, value in recipe.items() if name not in known},
            data=found["data"],
            start=found.get("start", {}),
            weights=found["model"]["weights"],
            result=found.get("result"),
            stopped=found.get("stopped"),
            log=_read_log(folder / LOG_FILE),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not that of a run: {error!r}") from None


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in read_text(path).splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # A process that is killed, or a full disk, cuts the last line short.
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append({name: one for name, one in line.items() if not _is_nan(one)})
    return lines


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
