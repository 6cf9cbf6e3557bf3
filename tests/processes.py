"""Processes for tests: forks of the one that runs the tests, which has imported everything.

A process that starts anew imports PyTorch and TransformerLens, for ten seconds of processor time
and more.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from circuits.cli import main


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit code (of a signal: minus its number), and what it wrote."""

    code: int | None
    out: str
    err: str


class Started:
    """A call of a function in a process of its own."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        daemon: bool = True,
    ) -> None:
        """Starts it; a daemon ends with the tests, and can start no processes of its own."""
        self._files = [tempfile.TemporaryFile("w+") for _ in "oe"]  # noqa: SIM115 (see ended)
        self._process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(function, arguments, environment or {}), daemon=daemon
        )
        with warnings.catch_warnings():
            # Where there are threads, Python warns of a fork; those of torch do nothing here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()

    def _run(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]
    ) -> None:
        os.environ.update(environment)
        for number, file in enumerate(self._files, start=1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        torch.set_num_threads(1)
        function(*arguments)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid or 0

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def ended(self, timeout: float = 240) -> Ended:
        """Waits for its end."""
        self._process.join(timeout)
        late = self.runs
        if late:
            self._process.kill()
            self._process.join()
        for file in self._files:
            file.seek(0)
        out, err = (file.read() for file in self._files)
        for file in self._files:
            file.close()
        assert not late, f"after {timeout} s it still ran: {out}{err}"
        return Ended(self._process.exitcode, out, err)


def start_together(n: int, function: Callable[..., Any], *arguments: Any) -> list[Started]:
    """Starts n processes in the environment that a launcher would give them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    place["WORLD_SIZE"] = place["LOCAL_WORLD_SIZE"] = str(n)
    return [
        Started(function, *arguments, environment=place | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(n)
    ]


def command(*arguments: str) -> None:
    """The command line as a process: it ends with its exit code."""
    sys.exit(main(arguments))


def wait_for(condition: Callable[[], object], process: Started) -> None:
    """Waits until something is so, while the process runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.runs, process.ended()
        assert time.monotonic() < deadline
        time.sleep(0.005)
