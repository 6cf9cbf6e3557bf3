"""Settings: the fields of a config, each with its default, its sentence and what it may be.

    steps: int = setting(2500, "Schedule", "Optimiser steps.", AT_LEAST_1)

A field says all of that once. Checks (`complaints`), docstrings (`described`), the options of the
command line with their help (circuits/cli/config_options.py), the docs' tables and recipe files
(circuits/recipe.py) read it there.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the values of a setting may be.

    Attributes:
        words: As it is said behind "it must be".
        holds: Whether a value is allowed; takes any value at all.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TRUE_OR_FALSE = Rule("True or False", lambda v: isinstance(v, bool))
AT_LEAST_0 = Rule("a whole number >= 0", lambda v: _is_whole(v) and v >= 0)
AT_LEAST_1 = Rule("a whole number >= 1", lambda v: _is_whole(v) and v >= 1)
FINITE = Rule("a finite number", _is_finite)
POSITIVE = Rule("a number > 0", lambda v: _is_finite(v) and v > 0)
POSITIVE_OR_NONE = Rule("a number > 0, or None", lambda v: v is None or POSITIVE.holds(v))
FROM_0 = Rule("a number >= 0", lambda v: _is_finite(v) and v >= 0)
SHARE = Rule("in [0, 1)", lambda v: _is_finite(v) and 0 <= v < 1)


def one_of(choices: Iterable[str]) -> Rule:
    """Returns the rule that a value is one of the choices."""
    known = tuple(choices)
    return Rule(f"one of {', '.join(known)}", known.__contains__)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field of a config is, besides its name, type and default.

    Attributes:
        theme: The heading under which `--help` shows it.
        sentence: What it does, in a sentence or two.
        rule: What it may be; None where the config checks it in a way of its own.
        option: How it is called on the command line; None for the field's name with hyphens.
    """

    theme: str
    sentence: str
    rule: Rule | None
    option: str | None


def setting(
    default: Any, theme: str, sentence: str, rule: Rule | None = None, *, option: str | None = None
) -> Any:
    """Returns a field of a dataclass that is a setting; see `Setting`."""
    metadata = {"setting": Setting(theme, sentence, rule, option)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(config: Any) -> dict[str, Setting]:
    """Returns the settings of a config, or of its class, by the names of their fields."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(config)}


def defaults_of(config_class: type) -> dict[str, Any]:
    """Returns the default of each field."""
    return {
        field.name: (
            field.default
            if field.default_factory is dataclasses.MISSING
            else field.default_factory()
        )
        for field in dataclasses.fields(config_class)
    }


def kinds_of(config_class: type) -> dict[str, type]:
    """Returns what each field holds in the end: bool, int, float, str, tuple (of texts) or dict.

    None next to it counts for nothing, and of several kinds the first counts.
    """
    hints = get_type_hints(config_class)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(config_class)}


def _kind(hint: Any) -> type:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _kind(next(part for part in get_args(hint) if part is not NoneType))
    if origin is Literal:
        return str
    kind = origin or hint
    return kind if kind in (bool, int, float, str, tuple) else dict


def complaints(config: Any) -> Iterator[str]:
    """Yields what is wrong with the values of a config, each against the rule of its setting."""
    for name, setting in settings_of(config).items():
        value = getattr(config, name)
        if setting.rule is not None and not setting.rule.holds(value):
            yield f"{name} is {value!r}; it must be {setting.rule.words}"


def described(config_class: type[T]) -> type[T]:
    """Adds the settings' sentences to a class's docstring, where `help` and notebooks show them."""
    lines = [
        f"    {name}: {setting.sentence}" for name, setting in settings_of(config_class).items()
    ]
    head = inspect.cleandoc(config_class.__doc__ or "")
    config_class.__doc__ = "\n".join([head, "", "Attributes:", *lines])
    return config_class
