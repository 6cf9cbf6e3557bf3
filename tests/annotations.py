"""Leaves functions that are defined inside others out of the check of annotations.

Such a function (a hook, most often) is defined anew at every call of the one around it, and each
time the check would compile it anew: that takes a third of the time of a search. What goes through
hooks is checked where it enters and leaves the functions around them.

This has to be imported before the package is.
"""

from __future__ import annotations

from typing import Any

import jaxtyping

_checked = jaxtyping.jaxtyped


def _checked_unless_inside(*, typechecker: Any) -> Any:
    """What jaxtyping's import hook puts on every function and class of the package."""

    def decorated(item: Any) -> Any:
        inside = "<locals>" in getattr(item, "__qualname__", "")
        return item if inside else _checked(item, typechecker=typechecker)

    return decorated


jaxtyping.jaxtyped = _checked_unless_inside
