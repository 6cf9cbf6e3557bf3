"""The page of a run, and its summary in a few lines of text, written into its folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from circuits.files import write_text
from circuits.numbers import percent
from circuits.pages import as_script_data, read_text_of, rendered
from circuits.progress import clock
from circuits.recipe import RECIPE_FILE
from circuits.settings import defaults_of, settings_of
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.training_page.charts import charts_of
from circuits.sparsify.training_page.run_folder import RunFolder, read_run
from circuits.sparsify.training_page.words import alerts, headline_numbers, verdict

TRAINING_PAGE = "training.html"
SUMMARY_FILE = "summary.txt"

_PACKAGE = "circuits.sparsify.training_page"
_MOST_ROWS = 100


def write_training_page(folder: str | Path) -> Path:
    """Writes `training.html` and `summary.txt` into the folder of a run, finished or not.

    Each is written to a temporary file that is then renamed. Returns the path of the page.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: its files are damaged.
        OSError: they cannot be written.
    """
    run = read_run(folder)
    write_text(run.path / SUMMARY_FILE, summary_of(run))
    page = run.path / TRAINING_PAGE
    write_text(page, page_of(run))
    return page


def training_html(folder: str | Path) -> str:
    """Returns the page of the run in a folder, one file that needs no network.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: its files are damaged.
    """
    return page_of(read_run(folder))


def page_of(run: RunFolder) -> str:
    """Returns the page of a run."""
    charts = charts_of(run)
    return rendered(
        _PACKAGE,
        "training.html.j2",
        style=read_text_of(_PACKAGE, "training.css"),
        script=read_text_of(_PACKAGE, "training.js"),
        title=title_of(run),
        alerts=alerts(run),
        verdict=verdict(run),
        numbers=headline_numbers(run),
        charts=charts,
        layers=list(_layers(run)),
        heads=_heads(run),
        context=run.data.get("context"),
        evaluations=_evaluations(run),
        themes=_themes(run),
        facts=dict(_facts(run)),
        commands=dict(_commands(run)),
        chart_data=as_script_data(
            {
                "steps": run.config["steps"],
                "stops": [line["step"] for line in run.evaluations],
                "charts": [
                    {
                        "kind": chart.kind,
                        "series": [
                            {"name": curve.name, "points": curve.points}
                            for curve in chart.series
                            if "bound" not in curve.look
                        ],
                    }
                    for chart in charts
                ],
            }
        ),
    )


def summary_of(run: RunFolder) -> str:
    """Returns what came of a run, and how to go on, in a few lines of text."""
    lines = [
        title_of(run),
        "",
        *(f"{alert.kind}: {alert.text}" for alert in alerts(run)),
        verdict(run),
        "",
    ]
    several = {**dict(headline_numbers(run)), **dict(_facts(run))}
    lines += [f"{name}: {text}" for name, text in several.items()]
    lines += ["", *(f"{what}: {command}" for what, command in _commands(run))]
    return "\n".join(lines) + "\n"


def title_of(run: RunFolder) -> str:
    """Returns what was trained, and into what."""
    model = run.job.get("model", "a model")
    return (
        f"{model}, trained on without a gate"
        if run.is_control
        else f"Sparse post-training of {model}"
    )


def _layers(run: RunFolder) -> Iterator[tuple[str, float, str]]:
    """Each layer's density at the best step, else at the last, and the length of its bar."""
    line = run.best or (run.evaluations[-1] if run.evaluations else {})
    shares = line.get("density_per_layer", [])
    greatest = max(shares, default=0) or 1
    for number, share in enumerate(shares):
        yield f"layer {number}", 100 * share / greatest, percent(share)


def _heads(run: RunFolder) -> list[list[tuple[float, str, str]]]:
    """A row for each layer with each head's density: its shade, its text, and both in words."""
    layers = (run.result or {}).get("density_per_head", []) if not run.is_control else []
    return [
        [
            (
                # In percent of the full colour: 60 if all is open, 15 less for each factor of 10.
                60 * max(0.0, 1 + math.log10(share) / 4) if share > 0 else 0.0,
                f"{100 * share:.0f}" if share > 0.0995 else f"{100 * share:.2g}",
                f"a{layer}.h{head}: {percent(share)}",
            )
            for head, share in enumerate(shares)
        ]
        for layer, shares in enumerate(layers)
    ]


def _evaluations(run: RunFolder) -> dict[str, Any]:
    """The evaluations as a table; of very many, every so manyth, the best and the last."""
    lines = run.evaluations
    every = math.ceil(len(lines) / _MOST_ROWS)
    best = run.best
    shown = [
        line for number, line in enumerate(lines)
        if number % every == 0 or line is best or line is lines[-1]
    ]  # fmt: skip
    columns = {
        "step": "{:,}", "ce": "{:.4f}", "tau": "{:.4f}", "kl": "{:.4f}", "epsilon": "{:g}",
        "density": "{:.4%}", "lambda": "{:.3g}", "learning_rate": "{:.3g}",
        "tokens_per_second": "{:,.0f}",
    }  # fmt: skip
    names = [name for name in columns if any(name in line for line in lines)]
    return {
        "names": names,
        "rows": [
            (
                line is best,
                [columns[name].format(line[name]) if name in line else "" for name in names],
            )
            for line in shown
        ],
        "left_out": len(lines) - len(shown),
    }


def _themes(run: RunFolder) -> dict[str, list[tuple[str, str, str, str]]]:
    """The recipe by theme, as in `--help`: name, value, the default if it is another, meaning."""
    themes: dict[str, list[tuple[str, str, str, str]]] = {}
    if run.job:
        themes["Model, data and result"] = [
            (name, _value(value), "", "") for name, value in run.job.items()
        ]
    defaults = defaults_of(TrainConfig)
    for name, one in settings_of(TrainConfig).items():
        value, usual = run.config.get(name), defaults[name]
        themes.setdefault(one.theme, []).append(
            (name, _value(value), "" if value == usual else _value(usual), one.sentence)
        )
    return themes


def _facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    """What was trained on what, where and for how long."""
    if "model" in run.job:
        yield "model", str(run.job["model"])
    yield "weights of the dense model", f"SHA-256 {run.weights}"
    for name, value in run.data.items():
        if value is not None:
            yield f"data, {name.replace('_', ' ')}", _value(value)
    yield "seed", _value(run.config["seed"])
    for name in ("device", "gpu", "processes"):
        if run.start.get(name) is not None:
            yield name, _value(run.start[name])
    if run.seconds is not None:
        yield "time", f"{clock(run.seconds)} for {run.step:,} steps"
    for name, version in run.start.get("versions", {}).items():
        yield name, str(version)


def _commands(run: RunFolder) -> Iterator[tuple[str, str]]:
    """How to go on with the run, make it again, or look at what came of it."""
    if "model" not in run.job:
        return  # It was started from Python, with a model and data that no command has.
    folder = shlex.quote(str(run.path))
    recipe, device = shlex.quote(str(run.path / RECIPE_FILE)), run.start.get("device", "cpu")
    train = f"circuits train --config {recipe} --device {device}"
    if run.result is None:
        yield "go on with it", f"{train} --out {folder} --resume"
    yield "make it again", f"{train} --out again"
    if run.result is not None:
        model, twin = shlex.quote(str(run.job["model"])), shlex.quote(str(run.path / "model"))
        yield "compare", f"circuits compare --dense {model} --sparse {twin} --out results"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)
