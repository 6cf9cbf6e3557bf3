"""Stopping a run without losing its last steps: Ctrl-C, and the SIGTERM that schedulers send."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """The run was stopped by a signal; its state is saved.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = int(number)

    @property
    def exit_code(self) -> int:
        """What a command ends with: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal


@dataclass
class StopRequest:
    """Whether a run was asked to stop.

    Attributes:
        signal: The number of the signal that asked for it; 0 for none.
    """

    signal: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yields what the first Ctrl-C or a SIGTERM is noted in; the old handlers come back at the end.

    A second Ctrl-C is a KeyboardInterrupt at once. A second SIGTERM changes nothing, as launchers
    and schedulers may both send one. Outside the main thread, which alone has signals, nothing is
    noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, _frame: Any) -> None:
        request.signal = max(request.signal, number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    before: dict[int, Any] = {
        number: signal.signal(number, on_signal) or signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
