"""The options that several commands have, and what their arguments mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.choices import ABLATIONS, ATTRIBUTION_METHODS, GATES, GRANULARITIES, SELECTIONS
from circuits.seeds import SEED_RANGE, is_seed

if TYPE_CHECKING:
    from torch import Tensor

    from circuits.results.discovery import DiscoverConfig
    from circuits.sparsify.data import TokenStream

Target = Annotated[float, typer.Option(help="Faithfulness that a circuit must reach, 0 to 1.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A task's name, a .csv or .jsonl of prompt pairs, a .py that registers a task, or "
        "mib:ioi and the like for the MIB benchmark's. Repeatable.",
    ),
]
Granularities = Annotated[
    list[str] | None,
    typer.Option("--granularity", help=f"{', '.join(GRANULARITIES)}. Repeatable."),
]
Method = Annotated[
    str,
    typer.Option(
        help=f"How components are scored: {', '.join(ATTRIBUTION_METHODS)}; also eap and eap-ig."
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--method-option", help="An option of the method, as steps=10. Repeatable."),
]
SelectionName = Annotated[
    str, typer.Option("--selection", help=f"Order of components: {', '.join(SELECTIONS)}.")
]
AblationName = Annotated[
    str,
    typer.Option(
        "--ablation", help=f"What stands in for other components: {', '.join(ABLATIONS)}."
    ),
]
GatesName = Annotated[
    str,
    typer.Option(
        "--gates",
        help=f"What a sparse model's gates do in a circuit: {', '.join(GATES)} (held at their "
        "values in the clean run). A dense model has none.",
    ),
]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune/--no-prune",
        help="Take out of each circuit what can go, until no single component can.",
    ),
]
NPrompts = Annotated[
    int,
    typer.Option("--prompts", help="Prompts in each of three sets: to rank, to size, to report."),
]


def _checked_seed(seed: int) -> int:
    if not is_seed(seed):
        raise typer.BadParameter(f"--seed is {seed}; it must be {SEED_RANGE}")
    return seed


Seed = Annotated[
    int,
    typer.Option(callback=_checked_seed, help="Seed of prompts, random circuits and resamples."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code from the hub, for names that load with it."
    ),
]

DEFAULT_TASKS = ["ioi", "greater_than"]


def text_stream(path: Path, tokenizer: Any, context: int, seed: int) -> TokenStream:
    """Returns the stream of a UTF-8 text file."""
    from circuits.sparsify.data import TextStream

    return TextStream(path, tokenizer, context=context, seed=seed)


def held_out_texts(path: Path, models: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Returns held-out sequences of a text by model, each in the model's own tokens."""
    from circuits.models.tokenization import tokenizer_fingerprint

    context = min(128, *(model.cfg.n_ctx for model in models.values()))
    streams: dict[str, TokenStream] = {}
    found = {}
    for name, model in models.items():
        stream = streams.get(key := tokenizer_fingerprint(model.tokenizer))
        if stream is None:
            stream = streams[key] = text_stream(path, model.tokenizer, context, seed)
        found[name] = stream.held_out("selection", 64)
    return found


def _option(text: str) -> tuple[str, Any]:
    """The name and the value in `NAME=VALUE`; what is no number, true or false is text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--method-option is {text!r}; write NAME=VALUE, such as steps=10")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def discover_config(
    target: float,
    granularity: list[str] | None,
    method: str,
    method_option: list[str] | None,
    selection: str,
    ablation: str,
    gates: str,
    prompts: int,
    seed: int,
    prune: bool = False,
) -> DiscoverConfig:
    """Returns the configuration that the options say.

    Raises:
        ValueError: a value is not allowed, or the method has no such option.
    """
    from circuits.discovery.find_circuits import method_of
    from circuits.results.discovery import DiscoverConfig

    config = DiscoverConfig(
        target=target,
        granularities=tuple(granularity or GRANULARITIES),
        method=method,
        method_options=dict(_option(text) for text in method_option or ()),
        selection=selection,
        ablation=ablation,
        gates=gates,
        n_prompts=prompts,
        seed=seed,
        prune=prune,
    )
    method_of(config)
    return config
