"""Folders of runs as `circuits train` leaves them, written by hand with known numbers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuits.recipe import write_recipe
from circuits.sparsify.config import TrainConfig

N_LAYERS, N_HEADS, DENSE_CE, TAU = 3, 4, 1.25, 1.26


def make_run_folder(
    path: Path,
    *,
    done: int = 40,
    model: str | None = "dense",
    data: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    stopped: dict[str, Any] | None = None,
    gap: float = 0.002,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Writes a run of 40 steps, of which so many are done; returns the lines of its log.

    CE (KL) falls to `gap` below its bound at the end; with a `gap` below 0 it never keeps it.
    """
    settings: dict[str, Any] = {"steps": 40, "control_every": 2, "evaluate_every": 5}
    settings["learning_rate"] = 1e-3
    config = TrainConfig(**(settings | changes))
    by_kl = config.gate and config.bound == "kl"
    log, best = [], None
    for step in range(1, done + 1):
        held = (config.epsilon if by_kl else TAU) - gap + 2 * (1 - step / 40) ** 4
        line: dict[str, Any] = {"step": step, "sampled_ce": 1.3 + 1 / step}
        if config.gate:
            line |= {"expected_density": 0.5 * 0.9**step, "lambda": 1 + math.sin(step) / 2}
        line |= {"tokens_per_second": 1000.0 + step, "seconds": 2.0 * step}
        if config.gate and step % 2 == 0:
            line |= {"control_kl": held * 1.1} if by_kl else {
                "control_ce": held + 0.01, "control_tau": TAU + 0.02,
            }  # fmt: skip
        if step % 5 == 0 and config.gate:
            best = step if gap >= 0 and held <= (config.epsilon if by_kl else TAU) else best
            density = 0.4 * 0.9**step
            line |= {"ce": held + (1.2 if by_kl else 0), "density": density, "best_step": best}
            line |= {"kl": held, "epsilon": config.epsilon} if by_kl else {"tau": TAU}
            line["density_per_layer"] = [density * (layer + 1) / 2 for layer in range(N_LAYERS)]
        elif step % 5 == 0:
            line["ce"] = DENSE_CE - 0.001 * step
        log.append(line)
    path.mkdir(parents=True, exist_ok=True)
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    known = {
        "config": asdict(config),
        "data": {"kind": "text file", "context": 64, "seed": 0} | (data or {}),
        "model": {"weights": "ab" * 32, "frozen": []},
        "start": {
            "versions": {"python": "3.11", "torch": "2.13"}, "device": "cpu", "gpu": None,
            "processes": 1, "dense_ce": DENSE_CE, "notes": [],
        },
    }  # fmt: skip
    known |= {} if result is None else {"result": result}
    known |= {} if stopped is None else {"stopped": stopped}
    (path / "run.json").write_text(json.dumps(known))
    job = {} if model is None else {"model": model, "context": 64}
    write_recipe(path / "recipe.toml", job | asdict(config))
    return log


def result_of(log: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What `TrainResult.summary` says about a twin whose best state is the last evaluation's."""
    line = [line for line in log if "ce" in line][-1]
    return {
        "satisfied": True, "failures": [], "warnings": [], "ce": line["ce"], "dense_ce": DENSE_CE,
        "tau": line.get("tau"), "density": line.get("density", 1.0),
        "density_per_head": [[0.5, 0.005, 0.0, 1.0]] * N_LAYERS, "context": 64,
        "steps": line["step"], "best_step": line["step"], "seconds": 80.5, "bound": {},
        **({"kl": line["kl"], "epsilon": line["epsilon"]} if "kl" in line else {}),
        **changes,
    }  # fmt: skip
