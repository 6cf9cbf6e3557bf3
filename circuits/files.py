"""Writing files and folders so that a crash leaves the old or the new, never half of one."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_file(path: str | Path) -> None:
    """Refuses a path that no file can be written to; call it before any long work.

    Raises:
        FileExistsError: it is a folder, or neither file nor folder (a device, a pipe, a socket).
        FileNotFoundError: the folder that it should stand in does not exist.
        PermissionError: that folder cannot be written into.
    """
    path = Path(path)
    _check_kind(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent} to write {path.name} into; make it first"
        )
    _check_permission(path.parent)


def check_folder(path: str | Path) -> None:
    """Refuses a path that no folder for results can be at; folders above it may be missing.

    Raises:
        FileExistsError: it, or what it should stand in, is not a folder.
        PermissionError: it cannot be made or written into.
    """
    there = Path(path).absolute()
    while not os.path.lexists(there):
        there = there.parent
    _check_kind(there)
    if not there.is_dir():
        raise FileExistsError(f"{there} is a file; give a folder for the results")
    _check_permission(there)


def _check_kind(path: Path) -> None:
    """A rename would put a file in the place of a device."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(
            f"{path} is neither a file nor a folder but a device, a pipe or a socket; give the "
            "name of a file"
        )


def _check_permission(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write into {folder}; give another folder")


def file_name_of(name: str) -> str:
    """Returns the name of a task, model or figure without what a path would read as folders."""
    return re.sub(r"[^\w.-]", "_", name)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to a temporary file next to `path`, then renames it to `path`.

    Raises:
        OSError: see `check_file`, or the disk is full.
    """
    check_file(path)
    # A long name leaves no room for what is added to it.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Writes `content` as UTF-8, to a temporary file that is then renamed."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, to a temporary file that is then renamed; NaN is refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to write into, which takes the place of `folder` at the end.

    What was written is flushed to the disk, then renamed, then the rename is flushed too. If
    anything of this fails, `folder` is what it was, and nothing is left next to it. The folder that
    it stands in is made where there is none.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        for parent, _, names in os.walk(new):
            # Libraries that write through a temporary file leave one that only its owner reads.
            for path, mode in (*((Path(parent, name), 0o644) for name in names),
                               (Path(parent), 0o755)):  # fmt: skip
                path.chmod(mode)
                _flush(path)
        # A folder with files cannot be renamed over: for a moment the old one has another name.
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        _flush(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
