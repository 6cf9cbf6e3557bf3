"""Puts into pages, when the site is built, what the code says once.

The options of every command go into the page of the command line, the fields of configs where
`<!-- settings: module.Class -->` stands, and the table of architectures where its marker does.
"""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from typing import Any

import click
import typer.main

from circuits.cli import app
from circuits.settings import defaults_of, settings_of

MARKER = "<!-- commands -->"
ARCHITECTURES = "<!-- architectures -->"
CHECKS = ("runs", "gate", "edges", "attention_edges", "trains", "saved")
SETTINGS = re.compile(r"<!-- settings: ([\w.]+)\.(\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces markers: by a section for each command, as its --help has it, or by a table."""
    markdown = SETTINGS.sub(lambda found: settings(*found.groups()), markdown)
    if ARCHITECTURES in markdown:
        table = architectures(Path(__file__).with_name("architectures.csv"))
        markdown = markdown.replace(ARCHITECTURES, table)
    return markdown.replace(MARKER, commands()) if MARKER in markdown else markdown


def architectures(path: Path) -> str:
    """Returns the table of architectures that run, and a line with those that do not."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = [
        "| Architecture | gate | edges | attention edges | trains | saved | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    others: dict[str, list[str]] = {}
    for row in rows:
        if row["runs"] != "yes":
            others.setdefault(row["runs"], []).append(row["architecture"])
            continue
        reasons = list(dict.fromkeys(row[check] for check in CHECKS if row[check] != "yes"))
        cells = ["yes" if row[check] == "yes" else "no" for check in CHECKS[1:]]
        name, why = row["architecture"], _cell("; ".join(reasons))
        table.append(f"| {name} | {' | '.join(cells)} | {why} |")
    lines = [f"- {_cell(reason)}: {', '.join(names)}" for reason, names in others.items()]
    return "\n".join([*table, "", "Those that do not run, by reason:", "", *lines])


def settings(module: str, name: str) -> str:
    """Returns a table of the fields of a config."""
    config_class = getattr(importlib.import_module(module), name)
    rows = [f"| `{name}` | Default | |", "|---|---|---|"]
    for field, one in settings_of(config_class).items():
        rule = "" if one.rule is None else f" It must be {one.rule.words}."
        default = _shown(defaults_of(config_class)[field])
        rows.append(f"| `{field}` | {default} | {_cell(one.sentence + rule)} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    return "" if default is None or default is False or default == [] else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands() -> str:
    """Returns a section of Markdown for each command."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_sections(group, click.Context(group, info_name="circuits"), "circuits"))


def _sections(group: Any, context: click.Context, path: str) -> list[str]:
    """A section for each command of a group, and of the groups in it."""
    parts = []
    for name, command in group.commands.items():
        inner = click.Context(command, context, info_name=name)
        if hasattr(command, "commands"):
            parts += _sections(command, inner, f"{path} {name}")
            continue
        themes: dict[str, list[str]] = {}
        usage = command.collect_usage_pieces(inner)
        for option in command.params:
            if option.name == "help":
                continue
            default = _shown(option.default)
            names = [option.name.upper()]
            if option.param_type_name == "option":
                names = [*option.opts, *option.secondary_opts]  # `--no-prune` is one of these.
            shown = ", ".join(f"`{one}`" for one in names)
            theme = getattr(option, "rich_help_panel", None) or "Option"
            rows = themes.setdefault(theme, [f"| {theme} | Default | |", "|---|---|---|"])
            rows.append(f"| {shown} | {default} | {_cell(option.help or '')} |")
        tables = "\n\n".join("\n".join(rows) for rows in themes.values())
        parts.append(
            f"## {path} {name}\n\n{command.help}\n\n    {path} {name} {' '.join(usage)}\n\n{tables}"
        )
    return parts
