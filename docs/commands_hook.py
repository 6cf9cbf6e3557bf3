"""Puts the options of every command into the page of the command line when the site is built."""

from __future__ import annotations

from typing import Any

import click
import typer.main

from circuits.cli import app

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the marker by a section for each command, as its --help has it."""
    return markdown.replace(MARKER, commands()) if MARKER in markdown else markdown


def commands() -> str:
    """Returns a section of Markdown for each command."""
    group: Any = typer.main.get_command(app)
    context = click.Context(group, info_name="circuits")
    parts = []
    for name, command in group.commands.items():
        rows = ["| Option | Default | |", "|---|---|---|"]
        usage = command.collect_usage_pieces(click.Context(command, context, info_name=name))
        for option in command.params:
            if option.name == "help":
                continue
            default = "" if option.default in (None, False) else f"`{option.default}`"
            names = option.opts if option.param_type_name == "option" else [option.name.upper()]
            shown = ", ".join(f"`{one}`" for one in names)
            rows.append(f"| {shown} | {default} | {option.help or ''} |")
        parts.append(
            f"## circuits {name}\n\n{command.help}\n\n"
            f"    circuits {name} {' '.join(usage)}\n\n" + "\n".join(rows)
        )
    return "\n\n".join(parts)
