"""What scores and faithfulness of edges cost here, and by TransformerLens' attribution patching.

    python benchmarks/against_transformer_lens.py --out docs/against_transformer_lens.csv

Needs a TransformerLens that has it, 4.3 or later. Both get the same model, prompts, metric and
circuit. TransformerLens takes the gradient in the corrupted run and scores towards clean, so here
the two prompts of a pair change places and scores their sign. What both return must then agree to
1e-5 of the largest, or nothing is reported. Each job of theirs is timed in turn with ours, and the
median of the paired ratios, ours over theirs, is given: what else the machine does meets both.
Their faithfulness takes each pair by a call of its own, so it is timed for a few pairs, of which
all others take as long (`--pairs`). Memory is the growth of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from circuits.attribute import Scores, attribution_patching
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import Experiment, graph_of, prepare_experiment
from circuits.models.backend import Model
from circuits.models.load import load_model, new_model, tokenizer_of
from circuits.prompts import Prompts
from circuits.tasks import get_task
from measure import Job, grown_memory, report, seconds_of

theirs: Any = None
with contextlib.suppress(ImportError):
    theirs = importlib.import_module("transformer_lens.tools.analysis.attribution_patching")
if not hasattr(theirs, "faithfulness"):
    raise SystemExit("this TransformerLens cannot run circuits; install transformer-lens>=4.3")

TASK = "subject_verb"
N_KEPT = 100
"""How many edges the circuit has: those of the greatest absolute score."""
TOLERANCE = 1e-5
ENOUGH = 60.0
"""Seconds after which a job is not timed once more."""
JOBS = ("scores of edges", "scores of nodes", "faithfulness of a circuit")


def embedded(n_pairs: int) -> tuple[Model, Prompts]:
    """Returns the embedded dense model and pairs of its task, as TransformerLens can take them.

    All have one length and, since a metric of theirs does not know its prompt, one answer.
    """
    model = load_model("dense")
    (every,) = get_task(TASK).draw(tokenizer_of(model), 6 * n_pairs + 10, seed=0)
    same = (every.lengths == every.lengths.min()) & (every.answers == every.answers[0]).all(dim=1)
    few = every.subset(same.nonzero()[:n_pairs, 0].tolist())
    width = int(few.lengths[0])
    return model, dataclasses.replace(
        few, clean=few.clean[:, :width], corrupted=few.corrupted[:, :width]
    )


def random(n_pairs: int) -> tuple[Model, Prompts]:
    """Returns a random model of more layers, four times as wide, and random prompts."""
    torch.manual_seed(0)
    model = new_model(
        {
            "n_layers": 8,
            "n_heads": 4,
            "d_model": 512,
            "d_head": 128,
            "d_mlp": 2048,
            "d_vocab": 5000,
            "n_ctx": 64,
            "act_fn": "gelu_new",
            "normalization_type": "LN",
        }
    )
    clean = torch.randint(2, 5000, (n_pairs, 8))
    corrupted = clean.clone()
    # Also the last token: where little changes, what is recovered is a ratio of rounding errors.
    corrupted[:, 4:] = torch.randint(2, 5000, (n_pairs, 4))
    return model, Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((n_pairs,), 8),
        answers=torch.zeros((n_pairs, 1), dtype=torch.long),
        wrong_answers=torch.ones((n_pairs, 1), dtype=torch.long),
        templates=("random",) * n_pairs,
    )


MODELS: dict[str, Callable[[int], tuple[Model, Prompts]]] = {"dense": embedded, "random": random}
SHAPES = (("dense", 1), ("dense", 8), ("dense", 50), ("random", 8))


class Race:
    """The jobs on one model and its prompts, each by both.

    Attributes:
        ours: Our jobs by name.
        theirs: Theirs; they return scores by their names of edges and nodes.
    """

    def __init__(self, kind: str, n_pairs: int, n_measured: int = 1) -> None:
        """Makes model and prompts; their faithfulness is that of the first `n_measured` pairs."""
        self.n_measured = min(n_pairs, n_measured)
        self.model, self.prompts = MODELS[kind](n_pairs)
        self.graph = graph_of(self.model)
        self.kept = torch.zeros_like(self.graph.mask)
        self.circuit: list[Any] = []
        self.ours: dict[str, Job] = {
            JOBS[0]: lambda: -self._scores().edges,
            JOBS[1]: lambda: -self._scores().nodes,
            JOBS[2]: self._faithfulness,
        }
        self.theirs: dict[str, Job] = {
            JOBS[0]: lambda: self._attribution("edge").edge_scores,
            JOBS[1]: lambda: self._attribution("node").node_scores,
            JOBS[2]: self._their_faithfulness,
        }

    def apart(self, job: str, ours: Any, found: Any) -> float:
        """Returns how far what both returned is apart; with scores of edges, chooses the circuit.

        Raises:
            SystemExit: they are not the same.
        """
        summed, ours = found, ours[: len(found)] if job == JOBS[2] else ours
        if job != JOBS[2]:
            summed = torch.zeros_like(ours)
            for one, score in found.items():
                summed[self._place(one)] += score
        error = float((ours - summed).abs().max() / summed.abs().max())
        print(f"{job}: {error:.1e} of the largest apart", flush=True)
        if not error <= TOLERANCE:
            raise SystemExit(f"{job}: not the same, so what they cost is not compared")
        if job == JOBS[0]:
            least = ours.abs().flatten().topk(N_KEPT).values[-1]
            self.kept = (ours.abs() >= least) & self.graph.mask
            self.circuit = [edge for edge in found if self.kept[self._place(edge)]]
        return error

    def _place(self, one: Any) -> tuple[int, ...]:
        """Where an edge or a node of theirs, which is of one position, stands in our scores."""
        if not isinstance(one, tuple):
            return (self.graph.sources.index(_source(one)),)
        writer, reader = one
        layer, read = reader.layer, reader.kind[0]
        names = {"mlp_in": f"m{layer}", "logits": "logits"}
        to = names.get(reader.kind, f"a{layer}.h{reader.head}<{read}>")
        return self.graph.edge_index(f"{_source(writer)}->{to}")

    def _experiment(self, prompts: Prompts) -> Experiment:
        return prepare_experiment(self.model, prompts, metric="logit_diff")

    def _scores(self) -> Scores:
        given = self.prompts
        swapped = dataclasses.replace(given, clean=given.corrupted, corrupted=given.clean)
        return attribution_patching(self._experiment(swapped), attention_edges=False)

    def _faithfulness(self) -> Tensor:
        experiment = self._experiment(self.prompts)
        found = run_edges(experiment, self.kept)
        return (found - experiment.empty) / (experiment.full - experiment.empty)

    def _metric(self, logits: Tensor) -> Tensor:
        right, wrong = int(self.prompts.answers[0]), int(self.prompts.wrong_answers[0])
        return logits[0, -1, right] - logits[0, -1, wrong]

    def _attribution(self, granularity: str) -> Any:
        config = theirs.EdgeAttributionConfig(granularity=granularity)
        given = self.prompts.clean, self.prompts.corrupted
        return theirs.attribution_patch(self.model, *given, self._metric, config)

    def _their_faithfulness(self) -> Tensor:
        clean, corrupted = self.prompts.clean.split(1), self.prompts.corrupted.split(1)
        found = [
            theirs.faithfulness(self.model, *pair, self._metric, self.circuit)
            for pair in list(zip(clean, corrupted, strict=True))[: self.n_measured]
        ]
        return torch.tensor([one.recovered for one in found])


def _source(node: Any) -> str:
    if node.kind == "embed":
        return "input"
    return f"m{node.layer}" if node.head is None else f"a{node.layer}.h{node.head}"


def timed(job: Job) -> tuple[float, Any]:
    """Returns how long a job takes, and what it returns."""
    made: list[object] = []
    return seconds_of(lambda: made.append(job())), made[0]


def memory_of(kind: str, n_pairs: int, who: str) -> float:
    """Returns how many MB a process grows by that scores edges and does nothing else."""
    command = [sys.executable, __file__, "--alone", kind, str(n_pairs), who]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e6


def rows_of(kind: str, n_pairs: int, repeats: int, n_measured: int) -> list[dict[str, object]]:
    """Returns what each job costs both on one shape."""
    race = Race(kind, n_pairs, n_measured)
    shape: dict[str, object] = {"model": kind, "layers": race.graph.n_layers}
    shape |= {"heads": race.graph.n_heads, "pairs": n_pairs, "T": race.prompts.clean.shape[1]}
    rows: list[dict[str, object]] = []
    for warm_up in (race.ours[JOBS[1]], race.theirs[JOBS[1]]):
        warm_up()  # what is only done once is no one's cost
    for job in JOBS:
        times: list[tuple[float, float]] = []
        error, started = 0.0, time.perf_counter()
        while len(times) < repeats and time.perf_counter() - started < ENOUGH:
            (ours, made), (other, found) = timed(race.ours[job]), timed(race.theirs[job])
            share = race.n_measured / n_pairs if job == JOBS[2] else 1
            times.append((ours, other / share))
            error = race.apart(job, made, found)
        ratios = [ours / other for ours, other in times]
        rows.append(
            shape
            | {
                "job": job,
                "unit": "s",
                "ours": round(median(ours for ours, _ in times), 3),
                "theirs": round(median(other for _, other in times), 3),
                "ratio": round(median(ratios), 4),
                "lowest": round(min(ratios), 4),
                "highest": round(max(ratios), 4),
                "runs": len(times),
                "pairs_of_theirs": race.n_measured if job == JOBS[2] else n_pairs,
                "apart": f"{error:.0e}",
            }
        )
        print(rows[-1], flush=True)
    if sys.platform == "linux" and n_pairs == 8:
        ours, other = (memory_of(kind, n_pairs, who) for who in ("ours", "theirs"))
        rows.append(
            shape
            | {
                "job": f"memory: {JOBS[0]}",
                "unit": "MB",
                "ours": round(ours, 1),
                "theirs": round(other, 1),
                "ratio": round(ours / other, 4),
            }
        )
    return rows


def main() -> None:
    """Reads the arguments, runs both in turn and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--repeats", type=int, default=3, help="how often each pair is timed")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of their faithfulness")
    parser.add_argument("--quick", action="store_true", help="the embedded model, 1 and 8 pairs")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        kind, n_pairs, who = arguments.alone
        race = Race(kind, int(n_pairs))
        with torch.no_grad():
            race.model(race.prompts.clean[:1, :2])  # what libraries hold from then on
        print(grown_memory(getattr(race, who)[JOBS[0]]))
        return
    rows: list[dict[str, object]] = []
    for kind, n_pairs in SHAPES[: 2 if arguments.quick else None]:
        rows += rows_of(kind, n_pairs, arguments.repeats, arguments.pairs)
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
