"""Searches in several processes find what one finds, and fail as one does."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import circuits.comparison.searches as searches
from circuits.cli import main
from circuits.comparison.parts import part_files
from circuits.comparison.searches import processes_for
from circuits.gate.gate import is_gated
from circuits.tasks.task import _REGISTRY
from circuits.workers import ALONE, Workers
from tests.comparison.test_parts import TASK, as_files, compared, make_models, real_discover
from tests.helpers import make_tiny_model


@pytest.mark.slow
def test_two_processes_find_what_one_finds_to_the_last_bit(tmp_path):
    steps, found, kept = {}, {}, {}
    for n in (1, 2):
        steps[n], parts = [], tmp_path / f"{n}"
        found[n] = compared(parts, processes=n, on_step=steps[n].append)
        # Of the two lines of a part, the second is the discovery.
        kept[n] = {path.name: path.read_text().splitlines()[1] for path in part_files(parts)}
    assert as_files(found[2]) == as_files(found[1])
    as_json = {
        n: [(side, discovery.to_json()) for side, discovery in one.discoveries[TASK.name].items()]
        for n, one in found.items()
    }
    assert json.dumps(as_json[2]) == json.dumps(as_json[1])
    assert kept[2] == kept[1]
    assert len(kept[2]) == 3
    assert sorted(steps[2]) == sorted(steps[1])


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line_and_what_was_found_is_kept(
    tmp_path, monkeypatch, capsys
):
    parts = tmp_path / "out.parts"

    def discover(model, *arguments, **options):
        if not is_gated(model):
            return real_discover(model, *arguments, **options)
        while not part_files(parts):
            pass
        raise ValueError("scores are not finite")

    monkeypatch.setattr(searches, "discover", discover)
    monkeypatch.setattr("circuits.cli.compare._loaded_pair", lambda *_: make_models()[:2])
    monkeypatch.setitem(_REGISTRY, TASK.name, TASK)
    options = ["--task", TASK.name, "--prompts", "4", "--granularity", "mlp", "--processes", "2"]
    assert main(["compare", "--out", str(tmp_path / "out"), *options]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "comparing dense and sparse on cpu in 2 processes, seed 0" in said
    assert "circuits: sparse model, task made_up: scores are not finite" in said
    assert "Traceback" not in said
    assert [path.name for path in part_files(parts)] == ["made_up.dense.jsonl"]


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def large_model() -> Any:
    part = SimpleNamespace(numel=lambda: searches.SMALL + 1)
    return SimpleNamespace(W_E=torch.zeros(1), parameters=lambda: [part])


def on_a_gpu() -> Any:
    return SimpleNamespace(W_E=torch.zeros(1, device="meta"), parameters=lambda: [torch.zeros(1)])


@pytest.mark.usefixtures("four_threads")
def test_small_models_get_a_process_for_each_thread(monkeypatch):
    small = make_tiny_model()
    assert processes_for([small, small], ALONE) == 4
    assert processes_for([small, large_model()], ALONE) == 1
    assert processes_for([small, on_a_gpu()], ALONE) == 1
    assert processes_for([small], Workers(0, 2)) == 1
    monkeypatch.setattr("sys.platform", "darwin")
    assert processes_for([small], ALONE) == 1


def test_several_processes_are_refused_where_there_can_be_one(monkeypatch):
    small = make_tiny_model()
    assert processes_for([large_model()], ALONE, 3) == 3
    with pytest.raises(ValueError, match="processes is 0; it must be at least 1"):
        processes_for([small], ALONE, 0)
    with pytest.raises(ValueError, match="processes is 2, but the models are on cpu, meta, which"):
        processes_for([small, on_a_gpu()], ALONE, 2)
    with pytest.raises(
        ValueError, match="processes is 2, but a launcher .* leave it out or give 1"
    ):
        processes_for([small], Workers(0, 2), 2)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ValueError, match="only on Linux"):
        processes_for([small], ALONE, 2)
    assert processes_for([small], ALONE, 1) == 1
