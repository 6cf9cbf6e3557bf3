"""Checkpoints: whole or absent, damage noticed, the needless ones removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from circuits.files import write_json
from circuits.sparsify import checkpoint
from circuits.sparsify.checkpoint import (
    DamagedCheckpointError,
    best_path,
    cut_log,
    find_run,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.uint8)}


def save_steps(folder: Path, *steps: int, best_step: int | None = None) -> None:
    for step in steps:
        save_checkpoint(step_path(folder, step), TENSORS, {"step": step, "best_step": best_step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = step_path(tmp_path / "new", 7)
    state = {"step": 7, "x": 0.1, "none": None}
    save_checkpoint(path, {"t": TENSORS["a"].T, **TENSORS}, state)
    found = load_checkpoint(path)
    assert found.state == state
    assert torch.equal(found.tensors["a"], TENSORS["a"])
    assert torch.equal(found.tensors["t"], TENSORS["a"].T)
    assert found.tensors["b"].dtype == torch.uint8
    assert names(tmp_path / "new") == ["step_00000007"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    save_checkpoint(step_path(tmp_path, 1), {"a": torch.zeros(1)}, {"step": 1})
    assert load_checkpoint(step_path(tmp_path, 1)).tensors["a"].shape == (1,)


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(step_path(tmp_path, 1), {}, {"step": 2})
    assert load_checkpoint(step_path(tmp_path, 1)).state["step"] == 1
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, name: str, damage: str
) -> None:
    save_steps(tmp_path, 1, 2)
    broken = step_path(tmp_path, 2) / name
    if damage == "cut":
        os.truncate(broken, broken.stat().st_size // 2)
    else:
        broken.unlink()
    with pytest.warns(UserWarning, match="step_00000002.*going back to .*step_00000001"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 1


def test_an_altered_byte_is_noticed_and_named(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    path = step_path(tmp_path, 1) / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="tensors.safetensors does not match"):
        load_checkpoint(step_path(tmp_path, 1))
    with pytest.raises(DamagedCheckpointError, match="no usable checkpoint.*start again"):
        latest_checkpoint(tmp_path)


def save_run(folder: Path, *bests: int) -> None:
    """Saves a state every second step; each refers to the best weights of the step before it."""
    for step in bests:
        save_checkpoint(best_path(folder, step), TENSORS, {})
        state = {"step": step + 1, "best_step": step, "best_density": 0.0125}
        save_checkpoint(step_path(folder, step + 1), TENSORS, state)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "altered": alter,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": Path.unlink,
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
each_file = pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])


@damaged
@each_file
def test_damaged_best_weights_give_way_to_the_state_before_them(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save_run(tmp_path, 1, 3)
    damage(best_path(tmp_path, 3) / name)
    with pytest.warns(UserWarning, match="best_00000003.*going back to .*step_00000002"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.state["step"], found.lost) == (2, None)


@damaged
@each_file
def test_best_weights_that_no_state_has_whole_are_told_to_be_lost(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save_run(tmp_path, 1)
    save_steps(tmp_path, 4)
    state = {"step": 6, "best_step": 1, "best_density": 0.0125}
    save_checkpoint(step_path(tmp_path, 6), TENSORS, state)
    shutil.rmtree(step_path(tmp_path, 4))
    damage(best_path(tmp_path, 1) / name)
    message = "up to step 6, of step 1 with 1.25 % of edges open, are lost: .*going on from .*0006 "
    with pytest.warns(UserWarning, match=message):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 6
    assert str(found.lost).startswith("the best weights up to step 6, of step 1")


def test_a_state_from_before_there_was_a_best_comes_before_lost_ones(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    save_run(tmp_path, 3)
    shutil.rmtree(best_path(tmp_path, 3))
    with pytest.warns(UserWarning, match="best_00000003 cannot be read.*going back to .*0001"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 1


@damaged
def test_a_damaged_older_state_does_not_stop_the_next_one_from_being_saved(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save_steps(tmp_path, 1, 2)
    damage(step_path(tmp_path, 1) / "state.json")
    save_steps(tmp_path, 3)
    prune_checkpoints(tmp_path, 3, keep=3)
    assert {"step_00000002", "step_00000003"} <= set(names(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "run/run.json is not readable as JSON"),
        ("[1]", r"run/run.json must hold a JSON object, got the list \[1\]"),
        ('{"config": 3}', "holds a different run: config.steps was None and is 3"),
    ],
)
def test_a_damaged_run_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    begin(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_run(tmp_path / "run", IDENTITY, resume=True)


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None


def test_the_latest_two_and_the_best_they_name_are_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(best_path(tmp_path, step), TENSORS, {})
    save_steps(tmp_path, 1, 2, 3, best_step=1)
    (tmp_path / ".step_00000003.killed").mkdir()
    (tmp_path / ".best_00000003.killed").mkdir()
    prune_checkpoints(tmp_path, 3)
    assert names(tmp_path) == ["best_00000001", "step_00000002", "step_00000003"]


def test_states_after_the_one_just_saved_are_dropped(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    save_steps(tmp_path, 9)
    (step_path(tmp_path, 9) / "state.json").write_text("damaged")
    prune_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


IDENTITY = {"config": {"steps": 3, "penalty": "rms"}, "data": {"seed": 0}}


def begin(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "run.json", IDENTITY)


def test_a_run_is_begun_once_and_taken_up_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    assert find_run(folder, IDENTITY, resume=False) is None
    begin(folder)
    assert find_run(folder, IDENTITY, resume=True) is None
    save_steps(folder / "checkpoints", 4)
    found = find_run(folder, IDENTITY, resume=True)
    assert found is not None
    assert found.state["step"] == 4


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty; give a new folder, or resume=True"):
        find_run(tmp_path, IDENTITY, resume=False)
    with pytest.raises(ValueError, match="no run to resume"):
        find_run(tmp_path, IDENTITY, resume=True)
    with pytest.raises(ValueError, match="is a file; give a folder"):
        find_run(tmp_path / "thesis.tex", IDENTITY, resume=False)


def test_another_run_is_refused_by_its_differing_fields(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    other = {"config": {"steps": 4, "penalty": "rms"}, "data": {"seed": 1}}
    with pytest.raises(
        ValueError, match="config.steps was 3 and is 4; data.seed was 0 and is 1$"
    ) as caught:
        find_run(tmp_path / "run", other, resume=True)
    assert "penalty" not in str(caught.value)


def test_the_log_is_cut_after_the_step(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    tensors = TENSORS | {"c": torch.ones(3, dtype=torch.bfloat16), "d": torch.tensor(1.5)}
    save_checkpoint(tmp_path / "one", tensors, {})
    written = (tmp_path / "one" / checkpoint.TENSORS_FILE).read_bytes()
    assert written == safetensors.torch.save(tensors)
