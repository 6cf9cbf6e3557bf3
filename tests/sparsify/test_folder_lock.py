"""One process at a time in a folder, tried with processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuits.sparsify.folder_lock import (
    HOLDER_FILE,
    LOCK_FILE,
    FolderInUseError,
    check_free,
    locked_folder,
)

ROOT = Path(__file__).resolve().parents[2]
# Holds the folder until its standard input ends.
HOLD = """
import sys, time
from pathlib import Path
from circuits.sparsify.folder_lock import FolderInUseError, locked_folder
while time.time() < float(sys.argv[2]):
    pass
try:
    with locked_folder(Path(sys.argv[1])):
        print("holds", flush=True)
        sys.stdin.read()
except FolderInUseError as error:
    print(error, flush=True)
"""


def hold(folder: Path, start: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(start)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = hold(tmp_path / "run")
    assert said(process) == "holds"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_the_second_process_is_told_who_is_there(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    named = rf"run is in use by process {holder.pid} on {socket.gethostname()} since 20\d\d-"
    with pytest.raises(FolderInUseError, match=named), locked_folder(tmp_path / "run"):
        pass
    with pytest.raises(FolderInUseError, match=named):
        check_free(tmp_path / "run")
    second = hold(tmp_path / "run")
    assert f"in use by process {holder.pid}" in said(second)
    second.communicate(timeout=60)


@pytest.mark.slow
def test_a_killed_process_leaves_the_folder_free(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=60)
    assert (tmp_path / "run" / HOLDER_FILE).exists()  # it had no time to go
    check_free(tmp_path / "run")
    with locked_folder(tmp_path / "run"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run" / HOLDER_FILE).read_text()


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_gets_in(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        processes = [hold(folder, time.time() + 1.5) for _ in range(4)]
        lines = [said(process) for process in processes]
        for process in processes:
            process.communicate(timeout=60)
        assert lines.count("holds") == 1
        winner = processes[lines.index("holds")].pid
        assert sum(f"in use by process {winner} on" in line for line in lines) == 3


@pytest.mark.slow
def test_an_unnamed_holder_is_told_too(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.poll() is None
    (tmp_path / "run" / HOLDER_FILE).write_text("{")
    with pytest.raises(FolderInUseError, match="in use by another process; wait for it"):
        check_free(tmp_path / "run")


def test_the_thread_that_holds_a_folder_can_take_it_again_and_no_other_can(tmp_path: Path) -> None:
    refused = []

    def other() -> None:
        try:
            check_free(tmp_path)
        except FolderInUseError as error:
            refused.append(str(error))

    with locked_folder(tmp_path):
        with locked_folder(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    check_free(tmp_path)


def test_a_folder_that_nothing_came_of_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), locked_folder(tmp_path / "a" / "run"):
        raise RuntimeError("broken")
    assert not (tmp_path / "a" / "run").exists()
    with locked_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").is_dir()
    assert not list((tmp_path / "a").iterdir())


def test_a_folder_that_something_came_of_is_free_and_tidy(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run"):
        (tmp_path / "run" / "log").touch()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK_FILE, "log"]
    check_free(tmp_path / "run")
