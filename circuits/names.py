"""Names of behaviours and of heads' roles as a reader sees them.

Files, options and tables keep the identifiers, which can be typed and searched for.
"""

from __future__ import annotations

_BEHAVIOURS = {
    "ioi": "IOI",
    "ioi_swap": "IOI, names swapped",
    "greater_than": "greater than",
    "pronoun": "pronoun gender",
    "subject_verb": "subject-verb agreement",
    "mib_ioi": "IOI (MIB)",
    "mib_mcqa": "MCQA (MIB)",
    "mib_arithmetic_addition": "addition (MIB)",
    "mib_arithmetic_subtraction": "subtraction (MIB)",
    "mib_arc_easy": "ARC easy (MIB)",
    "mib_arc_challenge": "ARC challenge (MIB)",
}


def behaviour_name(task: str) -> str:
    """Returns a task's name as it is read: "subject-verb agreement" for `subject_verb`.

    That of a task which is not part of the package has spaces in place of its underscores.
    """
    return _BEHAVIOURS.get(task) or spaced(task)


def spaced(name: str) -> str:
    """Returns an identifier with spaces in place of underscores."""
    return name.replace("_", " ")
