"""Puts into pages, when the site is built, what the code says once.

The options of every command go into the page of the command line, the fields of configs where
`<!-- settings: module.Class -->` stands, and the table of architectures where its marker does.
With CIRCUITS_RESULTS in the environment, a folder that `circuits compare` wrote, its report is part
of the site, and linked where `<!-- report -->` stands.
"""

from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import click
import typer.main

from circuits.cli import app
from circuits.settings import defaults_of, settings_of

MARKER = "<!-- commands -->"
ARCHITECTURES = "<!-- architectures -->"
REPORT = "<!-- report -->"
REPORT_PAGE = "report_of_the_embedded_pair.html"
CHECKS = ("runs", "gate", "edges", "attention_edges", "trains", "saved")
SETTINGS = re.compile(r"<!-- settings: ([\w.]+)\.(\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces markers: by a section for each command, as its --help has it, or by a table."""
    markdown = SETTINGS.sub(lambda found: settings(*found.groups()), markdown)
    markdown = markdown.replace(REPORT, report_link() if report_file() else "")
    if ARCHITECTURES in markdown:
        table = architectures(Path(__file__).with_name("architectures.csv"))
        markdown = markdown.replace(ARCHITECTURES, table)
    return markdown.replace(MARKER, commands()) if MARKER in markdown else markdown


def on_post_build(config: Any) -> None:
    """Copies the report into the site, where there is one."""
    report = report_file()
    if report is not None:
        shutil.copyfile(report, Path(config.site_dir) / REPORT_PAGE)


def report_file() -> Path | None:
    """Returns the report that the site shows; None without CIRCUITS_RESULTS.

    Raises:
        FileNotFoundError: the folder that it names has none.
    """
    folder = os.environ.get("CIRCUITS_RESULTS")
    if not folder:
        return None
    report = Path(folder) / "report.html"
    if not report.is_file():
        raise FileNotFoundError(f"CIRCUITS_RESULTS has no {report}; run circuits compare first")
    return report


def report_link() -> str:
    """Returns the line that leads to the report, which is no page that mkdocs knows."""
    return f'<a href="{REPORT_PAGE}"><strong>Open the report of the embedded pair</strong></a>'


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
