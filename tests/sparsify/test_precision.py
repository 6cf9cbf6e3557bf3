"""What steps compute in follows the device, and a run is known by it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.sparsify import precision
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.precision import choose_precision, has_bfloat16
from circuits.sparsify.train import TrainResult, post_train
from tests.helpers import CountingStream, make_taught_model, needs_hooked_transformer

CPU = torch.device("cpu")


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, **abilities: Any) -> None:
    """The CPU has these instructions, as torch tells them."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": False, "amx_tile": True, "avx512_f": True}, "float32"),
        ({"architecture": "aarch64", "neon": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_follows_the_instructions_of_the_cpu(
    abilities: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(monkeypatch, **abilities)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("float32", CPU) == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((12, 0), "bfloat16")],
)
def test_auto_follows_the_compute_capability_of_the_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    assert choose_precision("auto", torch.device("cuda:1")) == expected
    assert asked == [torch.device("cuda:1")]


def test_of_other_devices_auto_takes_float32() -> None:
    assert choose_precision("auto", torch.device("mps")) == "float32"


def test_bfloat16_is_warned_of_only_on_a_cpu_that_emulates_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_cpu(monkeypatch, amx_bf16=True)
    assert choose_precision("bfloat16", CPU) == "bfloat16"  # A warning would be an error.
    pretend_cpu(monkeypatch, amx_bf16=False)
    assert choose_precision("bfloat16", torch.device("mps")) == "bfloat16"
    with pytest.warns(UserWarning, match="this CPU has no instructions for bfloat16") as said:
        assert choose_precision("bfloat16", CPU) == "bfloat16"
    assert len(said) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model\t: 85\nflags\t\t: fpu sse amx_bf16 avx512f\nflags\t\t: fpu\n", True),
        ("flags\t\t: fpu avx512_bf16_x amx_tile\n", False),
        ("Features\t: fp asimd bf16\n", False),
        (None, False),
    ],
)
def test_where_torch_does_not_tell_linux_does(
    content: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    there = tmp_path / "cpuinfo"
    if content is not None:
        there.write_text(content)
    monkeypatch.setattr(precision, "Path", lambda name: there if name == "/proc/cpuinfo" else None)
    assert has_bfloat16(CPU) is expected


def train(out: Path, **options: Any) -> TrainResult:
    small = {"steps": 1, "batch_size": 2, "control_sequences": 2, "selection_sequences": 2}
    config = TrainConfig(gate=False, learning_rate=1e-2, **small, **options)
    resume = out.exists()
    return post_train(
        make_taught_model(CountingStream()), CountingStream(), config, out,
        frozen=(), progress=False, resume=resume,
    )  # fmt: skip


@needs_hooked_transformer
def test_a_run_is_known_by_the_precision_that_auto_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(monkeypatch, amx_bf16=True)
    half = train(tmp_path / "half", precision="auto")
    said = train(tmp_path / "said", precision="bfloat16")
    assert half.config == said.config
    assert torch.equal(half.model.W_E, said.model.W_E)
    written = json.loads((tmp_path / "half" / "run.json").read_text())
    assert written["config"]["precision"] == "bfloat16"
    recipe = tomllib.loads((tmp_path / "half" / "recipe.toml").read_text())
    assert recipe["precision"] == "bfloat16"
    pretend_cpu(monkeypatch, amx_bf16=False)
    whole = train(tmp_path / "whole", precision="auto")
    assert whole.config.precision == "float32"
    assert not torch.equal(half.model.W_E, whole.model.W_E)
    with pytest.raises(ValueError, match="config.precision was 'bfloat16' and is 'float32'"):
        train(tmp_path / "half", precision="auto")
