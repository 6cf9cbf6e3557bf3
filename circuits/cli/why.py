"""`circuits why`: what put an attention score where it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.cli.console import out_console, print_table, usage_errors
from circuits.cli.options import Device, Seed, TrustRemoteCode
from circuits.files import check_folder, write_text
from circuits.numbers import percent

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.results.score_split import ScoreSplit


def why_command(
    prompt: Annotated[str, typer.Argument(help="The text that the head looks at.")],
    head: Annotated[str, typer.Option(help="The head, such as a4.h1.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model's name or folder; repeatable, for models side by side "
            "(sparse, dense if left out)."
        ),
    ] = None,
    query: Annotated[
        int, typer.Option(help="The position that looks; from the end if negative.")
    ] = -1,
    key: Annotated[
        int | None,
        typer.Option(
            help="The position that is looked at; if left out, the one that gets most attention in "
            "the first model. Position 0 is the begin-of-sequence token."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs to list.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a figure, why.html, and all pairs of each model as CSV."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say why a head looks there: its score, split over pairs of upstream sources."""
    with usage_errors():
        from circuits.attribute.score_split import split_score
        from circuits.graph import head_of
        from circuits.models.load import load_model

        layer, number = head_of(head)
        if out is not None:
            check_folder(out)
        models: dict[str, Model] = {}
        splits: dict[str, ScoreSplit] = {}
        for name in model or ("sparse", "dense"):
            models[name] = load_model(name, device=device, trust_remote_code=trust_remote_code)
            splits[name] = split_score(models[name], prompt, layer, number, query, key)
            key = splits[name].key
    n_off = next(iter(splits.values())).n_to_shut or 1
    for name, split in splits.items():
        frame = split.to_dataframe().sort_values("score", ascending=False, kind="stable")
        head_line = f"{name}: {split}, score {split.score:.3f}"
        out_console.print(head_line, markup=False, highlight=False, soft_wrap=True)
        up, down = (frame.score[side].sum() for side in (frame.score > 0, frame.score < 0))
        listed = f"{up:+.3f} in all from pairs that raise it, {down:+.3f} from others"
        print_table(frame.head(pairs).to_dict("records"), "pairs that raise it most")
        out_console.print(listed, markup=False, highlight=False, soft_wrap=True)
        for line in _account(models[name], prompt, split, n_off, seed):
            out_console.print(line, markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        _write(out, splits, pairs)


def _account(model: Model, prompt: str, split: ScoreSplit, n_off: int, seed: int) -> list[str]:
    """What the gate makes of the score, and what is left of the attention without pairs."""
    from circuits.attribute.score_split import attention_without

    over, n_to_shut = split.over_threshold, split.n_to_shut
    lines = []
    if over is None:
        lines.append("It has no gate, so there is no threshold that the score must pass.")
    elif over <= 0:
        lines.append(f"The gate is shut: the score is {-over:.3f} under its threshold.")
    else:
        n_off = n_to_shut or n_off
        lines.append(f"The gate is open: the score is {over:.3f} over its threshold.")
    left = attention_without(model, prompt, split, split.strongest(n_off))
    lines.append(
        f"Without the {n_off} of {split.pairs.numel()} pairs that raise it most, attention goes "
        f"from {split.pattern:.3f} to {left:.3f}."
    )
    if over is not None and over > 0 and n_off <= split.pairs.numel() - n_off:
        shut = split.shut_at_random(n_off, seed=seed)
        lines.append(
            f"As many other pairs, drawn 1,000 times at random, shut it in {percent(shut)}."
        )
    return lines


def _write(out: Path, splits: dict[str, ScoreSplit], pairs: int) -> None:
    from circuits.figures import score_split_figure
    from circuits.figures.style import PAGE_CONFIG

    out.mkdir(parents=True, exist_ok=True)
    figure = score_split_figure(splits, n_pairs=pairs)
    files = {"why.html": figure.to_html(config=PAGE_CONFIG)}
    for number, (name, split) in enumerate(splits.items(), start=1):
        # A model's name may be a path.
        table = split.to_dataframe().to_csv(index=False)
        files[f"pairs_{number}_{Path(name).name}.csv"] = table
    for name, text in files.items():
        write_text(out / name, text)
        out_console.print(str(out / name), highlight=False, soft_wrap=True)
