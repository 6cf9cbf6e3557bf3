"""Reading the small files that a user hands over: configs, cards, tokenizers, lines of prompts.

JSON has corners where a reader guesses: a key that stands twice, a number that no float holds, an
object so deep that Python gives up. Here each of these is an error that names the file. A file is a
regular file that can be read, or a link to one: what has the name of a file and is something else
(a dangling link, a folder, a pipe) is refused, and never taken for a file that is not there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def is_there(path: Path) -> bool:
    """Returns whether there is a file at `path`.

    Raises:
        ValueError: there is something of that name that is not a readable file.
    """
    if not os.path.lexists(path):
        return False
    try:
        mode = path.stat().st_mode
    except OSError as error:
        found = "a dangling link" if path.is_symlink() else f"not readable ({error.strerror})"
    else:
        if stat.S_ISREG(mode) and os.access(path, os.R_OK):
            return True
        found = "a folder" if stat.S_ISDIR(mode) else "a file that may not be read"
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            found = "a special file"
    raise ValueError(
        f"{path} is {found}; it must be a regular file, or not be there: put the file in its "
        "place, or remove it"
    )


def read_text(path: Path) -> str:
    """Returns the UTF-8 text in a file, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a readable file, or not UTF-8.
    """
    if not is_there(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no JSON, or no object; `parse_json` says more.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Returns the JSON object in a text; `where` names its place in errors.

    Raises:
        ValueError: no JSON, another value than an object, a key that stands twice in one object,
            objects within objects that are too deep, or text that UTF-8 cannot hold.
    """
    try:
        values = json.loads(text, object_pairs_hook=_without_twins)
        json.dumps(values, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(
            f"{where} is not readable as JSON: lists or objects lie too deep in each other"
        ) from None
    except ValueError as error:  # also numbers of thousands of digits, and half characters
        reason = str(error).partition(";")[0]
        raise ValueError(f"{where} is not readable as JSON: {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object, got {shown(values)}")
    return values


def number(value: Any, what: str) -> float:
    """Returns a finite number read from a file; `what` names it in the error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{what} must be finite, got {shown(value)}")
    return found


def shown(value: Any) -> str:
    """Returns a value as an error shows it: its kind first unless it is plain, and cut short."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the {type(value).__name__} {text}" if isinstance(value, list | dict) else text


@contextlib.contextmanager
def refused_as(where: str, what: str) -> Iterator[None]:
    """Turns whatever another library raises over a file into one ValueError.

    transformers, TransformerLens and networkx trust their files, and stumble over a bad value
    wherever it is first used, by any exception. An error that names the file already is left as it
    is.

    Raises:
        ValueError: in place of any Exception inside; it begins with `where`.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, ValueError | OSError) and where in text:
            raise
        kind = "" if isinstance(error, ValueError) and text else f"{type(error).__name__}: "
        text = text if len(text) <= 400 else f"{text[:400]}..."
        raise ValueError(f"{where}: {what} ({kind}{text})") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {twice[0]!r} stands more than once in one object")
    return found
