"""Recipe files: the settings of a run as flat TOML, written by every run and read by the next.

    model = "gpt2"
    steps = 2500
    bound = "kl"

A key is the name of a field. What is None is left out, as TOML has no word for it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits.files import write_text
from circuits.reading import number, read_text, shown
from circuits.settings import kinds_of

RECIPE_FILE = "recipe.toml"

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    tuple: "a list of texts",
    dict: "a table",
}


def read_recipe(path: str | Path, *config_classes: type) -> dict[str, Any]:
    """Returns the values in a recipe file, by the names of the fields that they are for.

    Args:
        path: The file.
        config_classes: Dataclasses whose fields may stand in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, a key is not a field, or a value is not of its field's kind;
            the text names file and field.
    """
    path = Path(path)
    text = read_text(path)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is not readable as TOML: lists lie too deep in lists") from None
    except ValueError as error:  # also numbers of thousands of digits
        raise ValueError(f"{path} is not readable as TOML: {error}") from None
    kinds: dict[str, type] = {}
    for config_class in config_classes:
        kinds |= kinds_of(config_class)
    return {name: _checked(path, name, value, kinds) for name, value in table.items()}


def _checked(path: Path, name: str, value: Any, kinds: Mapping[str, type]) -> Any:
    """A value as its field holds it."""
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kinds)}"
        raise ValueError(f"{path}: unknown setting {name!r}; {hint}")
    kind = kinds[name]
    if kind is float:
        return number(value, f"{path}: {name}")
    is_texts = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if kind is tuple and is_texts:
        return tuple(value)
    if type(value) is not kind:  # True is an int to isinstance
        raise ValueError(f"{path}: {name} must be {_WORDS[kind]}, got {shown(value)}")
    return value


def write_recipe(path: str | Path, values: Mapping[str, Any]) -> None:
    """Writes a recipe file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(Path(path), to_toml(values))


def to_toml(values: Mapping[str, Any]) -> str:
    """Returns values by the names of their fields as TOML; None is left out."""
    return "".join(
        f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None
    )


def _toml(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # The escapes of a JSON string are TOML's too, which also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        pairs = (f"{_toml(key)} = {_toml(held)}" for key, held in value.items() if held is not None)
        return "{" + ", ".join(pairs) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]"
