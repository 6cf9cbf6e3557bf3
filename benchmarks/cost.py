"""What attribution and circuit evaluation cost, as ratios to a floor measured in the same run.

    python benchmarks/cost.py --out docs/benchmarks.csv

The floor of scoring is two forward passes and one backward pass of the plain model on the same
prompts, that of running a circuit one forward pass. Each is timed in turn with what it is the
floor of, and the median of the paired ratios is reported; memory is the growth of a process that
does nothing else, against that of one that runs the floor. The model has the shape of GPT-2 small
and random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from rich.progress import track

from circuits.attribute import attribution_patching, integrated_gradients
from circuits.discovery.search import curve_sizes
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import Experiment, graph_of, prepare_experiment
from circuits.metrics import logit_diff
from circuits.models.load import new_model
from circuits.prompts import Prompts
from measure import Job, grown_memory, report, seconds_of

if TYPE_CHECKING:
    from circuits.models.backend import Model

IG_STEPS = 5
FLOOR_OF = {
    "scores of all edges": "floor",
    "scores of edges and attention edges": "floor",
    f"integrated gradients, {IG_STEPS} steps": "integrated floor",
    "circuit of half of all edges": "forward",
    "circuit of 1 % of all edges": "forward",
    "circuit of all edges": "forward",
}


def random_model(n_layers: int) -> Model:
    """Returns a model of GPT-2 small's widths with random weights."""
    torch.manual_seed(0)
    return new_model(
        {
            "n_layers": n_layers,
            "n_heads": 12,
            "d_model": 768,
            "d_head": 64,
            "d_mlp": 3072,
            "d_vocab": 50257,
            "n_ctx": 512,
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
    )


def random_prompts(model: Model, batch: int, pos: int) -> Prompts:
    """Returns prompts of random tokens, corrupted in one place."""
    device = model.W_E.device
    clean = torch.randint(0, model.cfg.d_vocab, (batch, pos), device=device)
    corrupted = clean.clone()
    corrupted[:, pos // 2] = (clean[:, pos // 2] + 1) % model.cfg.d_vocab
    return Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((batch,), pos, device=device),
        answers=clean[:, :1],
        wrong_answers=corrupted[:, pos // 2, None],
        templates=("random",) * batch,
    )


def jobs(model: Model, prompts: Prompts) -> dict[str, Job]:
    """Returns what is timed, by name; floors among them."""

    def experiment() -> Experiment:
        return prepare_experiment(model, prompts, metric="logit_diff")

    def forward() -> None:
        with torch.no_grad():
            model(prompts.clean)

    def forward_backward() -> None:
        hook = ("blocks.0.hook_resid_pre", lambda act, hook: act.requires_grad_())
        logits = model.run_with_hooks(prompts.clean, fwd_hooks=[hook])[:, -1]
        logit_diff(logits, prompts, logits).sum().backward()

    def integrated_floor() -> None:
        forward()
        for _ in range(IG_STEPS + 1):
            forward_backward()

    def floor() -> None:
        forward()
        forward_backward()

    @cache
    def prepared() -> Experiment:
        return experiment()

    def circuit(share: float) -> Job:
        mask = graph_of(model).mask
        drawn = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
        return lambda: run_edges(prepared(), mask & (drawn < share))

    # The floor gives weights no gradient either: a user who scores would switch them off.
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return {
        "forward": forward,
        "floor": floor,
        "integrated floor": integrated_floor,
        "scores of all edges": lambda: attribution_patching(experiment(), attention_edges=False),
        "scores of edges and attention edges": lambda: attribution_patching(experiment()),
        f"integrated gradients, {IG_STEPS} steps": lambda: integrated_gradients(
            experiment(), steps=IG_STEPS, attention_edges=False
        ),
        "circuit of half of all edges": circuit(0.5),
        "circuit of 1 % of all edges": circuit(0.01),
        "circuit of all edges": circuit(1.0),
    }


def time_ratios(n_layers: int, batch: int, pos: int, repeats: int) -> list[dict[str, object]]:
    """Returns the median paired ratio of each job to its floor."""
    model = random_model(n_layers)
    every = jobs(model, random_prompts(model, batch, pos))
    for job in every.values():
        job()
    found: dict[str, list[float]] = {name: [] for name in every}
    for _ in track(range(repeats), description=f"{n_layers} layers, batch {batch}, T {pos}"):
        for name, job in every.items():
            found[name].append(seconds_of(job))
    rows = []
    for name, floor in FLOOR_OF.items():
        ratios = [own / least for own, least in zip(found[name], found[floor], strict=True)]
        rows.append(
            {
                "layers": n_layers,
                "batch": batch,
                "T": pos,
                "job": name,
                "floor": floor,
                "seconds": round(median(found[name]), 3),
                "ratio": round(median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
            }
        )
    return rows


def memory_of(name: str, batch: int, pos: int) -> int:
    """Returns by how many bytes this process grows while it runs one job, at most."""
    model = random_model(12)
    every = jobs(model, random_prompts(model, batch, pos))
    # What is only held before the job, such as libraries' buffers, is not the job's.
    with torch.no_grad():
        model(random_prompts(model, 1, 2).clean)
    return grown_memory(every[name])


def memory_ratio(batch: int, pos: int) -> dict[str, object]:
    """Returns the peak memory of edge scores against that of their floor, in own processes."""
    grown = {}
    for name in ("floor", "scores of all edges"):
        command = [sys.executable, __file__, "--memory-of", name]
        command += ["--batch", str(batch), "--pos", str(pos)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        grown[name] = int(found.stdout)
    return {
        "layers": 12,
        "batch": batch,
        "T": pos,
        "job": "memory: scores of all edges",
        "floor": "floor",
        "ratio": round(grown["scores of all edges"] / grown["floor"], 2),
    }


def curve_seconds(n_prompts: int, pos: int) -> dict[str, object]:
    """Returns how long the whole faithfulness curve takes, all of its sizes."""
    model = random_model(12)
    experiment = prepare_experiment(
        model, random_prompts(model, n_prompts, pos), metric="logit_diff"
    )
    mask = experiment.graph.mask
    order = mask.flatten().nonzero()[:, 0][torch.randperm(int(mask.sum()))]
    started = time.perf_counter()
    sizes = curve_sizes(torch.tensor([len(order)]))[:, 0].tolist()
    for size in track(sizes, description=f"faithfulness curve, {n_prompts} prompts"):
        edges = torch.zeros_like(mask).flatten()
        edges[order[:size]] = True
        run_edges(experiment, edges.view_as(mask))
    return {
        "layers": 12,
        "batch": n_prompts,
        "T": pos,
        "job": f"faithfulness curve of {len(sizes)} sizes",
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Reads the command line, measures and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="GPT-2 small at batch 8, T 16 only")
    parser.add_argument("--memory-of", choices=["floor", *FLOOR_OF], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--pos", type=int, default=16, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, arguments.batch, arguments.pos))
        return
    rows = time_ratios(12, 8, 16, arguments.repeats)
    if not arguments.quick:
        for shape in ((6, 8, 16), (12, 8, 32), (12, 16, 16)):
            rows += time_ratios(*shape, max(1, arguments.repeats // 2))
    if sys.platform == "linux" and not torch.cuda.is_available():
        rows.append(memory_ratio(8, 16))
    rows.append(curve_seconds(32, 16))
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
