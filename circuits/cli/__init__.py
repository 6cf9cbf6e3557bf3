"""The command line: arguments in, calls of the package, tables and exit codes out.

Exit codes: 0 done, 1 a failure (one line on stderr), 2 bad usage, 130 interrupted, 143 stopped by
SIGTERM. `--debug` shows tracebacks. torch and TransformerLens are imported only once the arguments
have been read.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from circuits.cli.compare import compare_command, robustness_command
from circuits.cli.config_options import ThemedCommand
from circuits.cli.console import out_console, say
from circuits.cli.discover import discover_command
from circuits.cli.figures import figures_command
from circuits.cli.methods import methods_command
from circuits.cli.mib import mib_command
from circuits.cli.models import models_app
from circuits.cli.push import push_command
from circuits.cli.show import show_command
from circuits.cli.tasks import tasks_command
from circuits.cli.text import text_command
from circuits.cli.train import train_command
from circuits.cli.why import why_command

app = typer.Typer(
    name="circuits",
    help="Sparse attention post-training, and circuits of dense and sparse models side by side.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for name, command in {
    "compare": compare_command,
    "robustness": robustness_command,
    "discover": discover_command,
    "show": show_command,
    "figures": figures_command,
    "methods": methods_command,
    "mib": mib_command,
    "tasks": tasks_command,
    "train": train_command,
    "text": text_command,
    "push": push_command,
    "why": why_command,
}.items():
    app.command(name, cls=ThemedCommand)(command)
app.add_typer(models_app, name="models")


def _tell_version(wanted: bool | None) -> None:
    if wanted:
        out_console.print(f"circuits {version('sparse-circuits')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    tell_version: Annotated[
        bool | None,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version and end."
        ),
    ] = None,
) -> None:
    del debug, tell_version  # Read in main(), which catches the errors; in its callback.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return app(args=arguments, standalone_mode=False) or 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        # Bad usage has an exit code of its own (2), whichever click typer is built on.
        code = getattr(error, "exit_code", 1)
        message = getattr(error, "message", "") or str(error) or type(error).__name__
        say(message)
        return code
