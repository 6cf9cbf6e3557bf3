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
    return "\n\n".join(_sections(group, click.Context(group, info_name="circuits"), "circuits"))


def _sections(group: Any, context: click.Context, path: str) -> list[str]:
    """A section for each command of a group, and of the groups in it."""
    parts = []
    for name, command in group.commands.items():
        inner = click.Context(command, context, info_name=name)
        if hasattr(command, "commands"):
            parts += _sections(command, inner, f"{path} {name}")
            continue
        rows = ["| Option | Default | |", "|---|---|---|"]
        usage = command.collect_usage_pieces(inner)
        for option in command.params:
            if option.name == "help":
                continue
            default = "" if option.default in (None, False) else f"`{option.default}`"
            names = [option.name.upper()]
            if option.param_type_name == "option":
                names = [*option.opts, *option.secondary_opts]  # `--no-prune` is one of these.
            shown = ", ".join(f"`{one}`" for one in names)
            rows.append(f"| {shown} | {default} | {option.help or ''} |")
        parts.append(
            f"## {path} {name}\n\n{command.help}\n\n"
            f"    {path} {name} {' '.join(usage)}\n\n" + "\n".join(rows)
        )
    return parts
