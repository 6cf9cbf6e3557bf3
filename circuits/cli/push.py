"""`circuits push`: a model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.console import out_console, usage_errors


def push_command(
    model: Annotated[Path, typer.Argument(help="A model's folder, such as run/model.")],
    repository: Annotated[str, typer.Argument(help="Where to, as owner/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
) -> None:
    """Put a model on the Hugging Face hub, with a card that says how it was made."""
    with usage_errors():
        from circuits.models.hub import push_to_hub

        url = push_to_hub(model, repository, private=private)
    out_console.print(f"uploaded to {url}", soft_wrap=True)
