"""One process at a time in a folder: a lock that names who holds it.

The lock is the operating system's (flock), so that of a process that died, however it died, is
free again. Who holds it stands in a second file, for the one that has to wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from circuits.files import write_json
from circuits.gate.card import read_json

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock.json"
LOCK_FILES = (LOCK_FILE, HOLDER_FILE)
"""What a lock leaves in its folder, or may leave there after a kill."""

_UNTIL_NAMED = 1.0  # seconds in which the holder of a lock has written who it is


class FolderInUseError(RuntimeError):
    """Another process is at work in the folder."""


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Holds the folder for this process inside the context; the folder is made if need be.

    The thread that holds it can take it again. A folder that was made here and stayed empty is
    removed in the end.

    Raises:
        FolderInUseError: another process, or thread, holds it.
        OSError: it cannot be made or written to, or is a file.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, is_singleton=True)
    is_outermost = not lock.is_locked
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by {_holder(folder)}; wait for it or stop it, or give another "
            "folder"
        ) from None
    try:
        if is_outermost:
            since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
            with contextlib.suppress(OSError):  # on a full disk the holder stays unnamed
                write_json(folder / HOLDER_FILE, holder)
        yield
    finally:
        if is_outermost:
            with contextlib.suppress(OSError):
                _tidy(folder, made)
        lock.release()


def check_free(folder: Path) -> None:
    """Refuses a folder that another process holds; leaves nothing in one that is free.

    Raises:
        FolderInUseError: it is held.
    """
    if (folder / LOCK_FILE).exists():
        with locked_folder(folder):
            pass


def _tidy(folder: Path, made: bool) -> None:
    """Removes the holder's name, and the lock where nothing has come of it."""
    (folder / HOLDER_FILE).unlink(missing_ok=True)
    # Elsewhere the lock's file stays: those who wait for it must all wait for the same one.
    if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
        (folder / LOCK_FILE).unlink()
        if made:
            folder.rmdir()


def _holder(folder: Path) -> str:
    """Says which process holds the folder's lock."""
    deadline = time.monotonic() + _UNTIL_NAMED
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            held = read_json(folder / HOLDER_FILE)
            return f"process {held['pid']} on {held['host']} since {held['since']}"
        if time.monotonic() > deadline:
            return "another process"
        time.sleep(0.05)
