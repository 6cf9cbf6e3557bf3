"""Calls in forks of this process, several at a time: what small models gain from several cores.

The matrices of a small model are too small to be shared by threads: two of them take a third more
processor time than one. Two processes with one thread each, at two different calls, do not wait for
each other. A fork has all that this process has loaded, and the two share that memory until one of
them writes to it, so models are neither loaded nor copied. It has no threads but the one that it
starts with, so it computes with one; PyTorch's data loaders do the same.

The parts of one call that several processes share are those of `circuits.workers`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeVar

import torch

ResultT = TypeVar("ResultT")

OnStep = Callable[[str], None]
"""What a call is given to say what it does, in a few words."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process gets when its parent ends


class _Raised(Exception):
    """Where an error arose in a fork, as text: the cause of the error that is raised here."""


def can_fork() -> bool:
    """Returns whether a fork of this process can compute; macOS has libraries that cannot."""
    return sys.platform == "linux"


def run_in_forks(
    calls: Sequence[Callable[[OnStep], ResultT]],
    n_processes: int,
    *,
    on_step: OnStep = lambda _what: None,
    on_result: Callable[[int, ResultT], None] = lambda _number, _result: None,
) -> list[ResultT]:
    """Returns what the calls return, in their order.

    Args:
        calls: What is called, each in a fork of its own, with a function for its steps. What it
            returns must be a value that pickles; what else it changes, this process does not see.
        n_processes: How many forks there are at a time. With 1 there is none, and the calls are
            made here, one after the other.
        on_step: Called here with the steps of all calls, as they come.
        on_result: Called here with the number of a call and its result as soon as it has ended.

    What a call warns of is warned of here, once for all calls. Whatever ends this function, or this
    process, ends the forks.

    Raises:
        ChildProcessError: a fork was killed, such as by a system that has no memory left.
        Exception: the first one that a call raises.
    """
    results: dict[int, ResultT] = {}

    def end(number: int, result: ResultT) -> None:
        results[number] = result
        on_result(number, result)

    if n_processes == 1:
        for number, call in enumerate(calls):
            end(number, call(on_step))
    else:
        _run(calls, n_processes, on_step, end)
    return [results[number] for number in range(len(calls))]


def _run(
    calls: Sequence[Callable[[OnStep], ResultT]],
    n_processes: int,
    on_step: OnStep,
    on_result: Callable[[int, ResultT], None],
) -> None:
    waiting = deque(enumerate(calls))
    forks: dict[Any, tuple[int, int]] = {}  # By what they are heard on: number of call, of process.
    warned: set[tuple[Any, ...]] = set()
    try:
        while waiting or forks:
            while waiting and len(forks) < n_processes:
                number, call = waiting.popleft()
                reader, pid = _fork(call)
                forks[reader] = number, pid
            ready: list[Any] = wait(list(forks))
            for reader in ready:
                number, pid = forks[reader]
                try:
                    kind, *content = pickle.loads(reader.recv_bytes())
                except EOFError:
                    code = os.waitstatus_to_exitcode(os.waitpid(forks.pop(reader)[1], 0)[1])
                    raise ChildProcessError(
                        f"one of {n_processes} processes ended before its work, "
                        f"{f'killed by signal {-code}' if code < 0 else f'with code {code}'}; "
                        "if memory was short, fewer processes need less of it"
                    ) from None
                if kind == "step":
                    on_step(content[0])
                elif kind == "warning":
                    message, *place = content
                    if (key := (str(message), *place)) not in warned:
                        warned.add(key)
                        warnings.warn_explicit(message, *place)
                elif kind == "error":
                    raise content[0] from _Raised(content[1])
                else:
                    del forks[reader]
                    reader.close()
                    os.waitpid(pid, 0)
                    on_result(number, content[0])
    finally:
        for reader, (_, pid) in forks.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            reader.close()


def _fork(call: Callable[[OnStep], Any]) -> tuple[Connection, int]:
    """A fork that makes the call: what it is heard on, and its number."""
    reader, writer = Pipe(duplex=False)
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python warns of a fork where there are threads: those of torch and of the progress bar.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            _serve(call, writer, parent)
        finally:
            # Neither the buffers nor what else is to be done at the end are this process's.
            os._exit(0)
    writer.close()
    return reader, pid


def _serve(call: Callable[[OnStep], Any], writer: Connection, parent: int) -> None:
    """What a fork does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the forks.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return

    def tell(kind: str, *content: Any) -> None:
        # Connection.send would hand tensors over in memory that ends with this process.
        writer.send_bytes(pickle.dumps((kind, *content)))

    def warn(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        tell("warning", str(message), category, filename, lineno)

    torch.set_num_threads(1)
    warnings.showwarning = warn
    try:
        tell("result", call(lambda what: tell("step", what)))
    except BaseException as error:
        tell("error", _pickled(error), f"\n{traceback.format_exc()}")


def _pickled(error: BaseException) -> BaseException:
    """An error, or one that says the same where it would not come through."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(str(error) or type(error).__name__)
    return error
