from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest

from circuits.sparsify.config import TrainConfig
from circuits.sparsify.trackers import check_tracker, open_tracker


class Told:
    """Stands in for accelerate's tracker, and keeps what it is told."""

    made: list["Told"] = []

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder
        self.events: list[Any] = []
        Told.made.append(self)

    def start(self) -> None:
        self.events.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.events.append(values["steps"])

    def log(self, values: dict[str, Any], step: int) -> None:
        self.events.append((step, values))

    def finish(self) -> None:
        self.events.append("finish")


def test_a_tracker_is_told_the_config_and_every_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(accelerate.tracking, "TensorBoardTracker", Told)
    with (
        pytest.raises(KeyboardInterrupt),
        open_tracker("tensorboard", tmp_path, TrainConfig(steps=7)) as tracker,
    ):
        tracker.log({"step": 3, "ce": 1.5, "density_per_layer": [0.1, 0.2], "best_step": None})
        raise KeyboardInterrupt
    (told,) = Told.made
    assert (told.name, told.folder) == ("tensorboard", str(tmp_path))
    line = {"step": 3, "ce": 1.5, "density_per_layer/0": 0.1, "density_per_layer/1": 0.2}
    assert told.events == ["start", 7, (3, line), "finish"]


def test_without_a_name_nothing_is_told(tmp_path: Path) -> None:
    with open_tracker(None, tmp_path, TrainConfig()) as tracker:
        tracker.log({"step": 1})


def test_an_unknown_or_missing_tracker_is_refused(monkeypatch) -> None:
    check_tracker(None)
    with pytest.raises(ValueError, match="unknown tracker 'paper'; choose one of tensorboard"):
        check_tracker("paper")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="wandb is not installed; pip install wandb"):
        check_tracker("wandb")
