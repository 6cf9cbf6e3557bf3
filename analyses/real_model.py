"""A real language model, its sparse twin and its control: SmolLM2-135M-Instruct.

    circuits models get smollm2
    python analyses/real_model.py --out real_model --device cuda
    python analyses/real_model.py --out real_model --embedded --docs docs

The first makes the text (`real_model_text`) and trains both as low-rank updates: some 12 minutes of
an H100 GPU, a day or more on two cores of a CPU. The second takes the embedded pair instead, which
was made so but for what docs/real_model.md tells. Then are written

    OUT/text.csv        CE, its difference to the dense model's, KL(dense || model) and density of
                        all models and of naive top-k attention, on each kind of held-out text
    OUT/behaviours.csv  which behaviours the models do, and how much of them the twin keeps
    OUT/heads.csv       in how many heads 80 % of the attribution of a single prompt lies
    OUT/run.csv         the states that both runs passed through
    OUT/compare         `circuits compare` of the behaviours that the dense model does
    OUT/pruned          `circuits compare --prune` of some of them, a folder a behaviour, and their
                        tables in pruned.csv and pruned_others.csv

Every part that is done is kept, down to the cells of a table, and what was stopped goes on where it
was. `--docs docs` puts the tables into docs/real_model, and into the page docs/real_model.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from heads_of_prompts import heads_table
from jaxtyping import Int
from real_model_page import TABLES, fill_page
from real_model_text import write_texts
from torch import Tensor

from circuits.choices import GRANULARITIES
from circuits.cli import main as circuits
from circuits.cli.console import say
from circuits.discovery.behaviours import behaviours, behaviours_table
from circuits.files import write_text
from circuits.gate.density import density_of, record_open_edges
from circuits.gate.gate import is_gated
from circuits.gate.top_k import add_top_k, is_top_k
from circuits.models.load import checked_device, copy_model, load_model, versions
from circuits.models.names import find_folder
from circuits.sparsify.data import separator_of, token_ids_of
from circuits.sparsify.loss import cross_entropy, distillation_loss
from circuits.tasks import get_task, task_names

DENSE = "smollm2"
CONTEXTS = (128, 256)
TOP_K = (8, 32)
BEHAVIOUR_PROMPTS = 100
HEADS_OF = ("ioi", "greater_than", "induction", "pronoun", "subject_verb")
PRUNED = (
    "--prune --granularity head --granularity attention_edge --prompts 40 --redraws 5 --processes 1"
)
"""What `circuits compare` is given for circuits that are pruned, which takes long."""
TRAINING = (
    "--model smollm2 --context 256 --batch-size 32 --steps 1000 --lora-rank 24 --beta2 0.99 "
    "--learning-rate 1.5e-3 --precision auto --attention hooks --save adapter-bfloat16 "
    "--evaluate-every 100"
)
RECIPES = {
    "sparse": TRAINING + " --bound kl --epsilon 0.08 --penalty mean --lambda-start 8 "
    "--lambda-max 200 --layer-steps 200 --layer-sequences 256 --selection-sequences 96",
    "control": TRAINING + " --control",
}
"""What `circuits train` is given for each model in addition to the text."""


def run_command(arguments: list[str]) -> None:
    """Runs a command of the package, and ends with it if it fails."""
    code = circuits(arguments)
    if code != 0:
        raise SystemExit(code)


def train(name: str, out: Path, device: str) -> Path:
    """Trains the twin or the control, from where it was stopped, and returns its folder."""
    run = out / f"{name}.run"
    graph = ["--cuda-graph"] if torch.device(device).type == "cuda" else []
    if not (run / "model").is_dir():
        data = ["--data", str(out / "text" / "train.jsonl"), "--device", device, "--out", str(run)]
        resume = ["--resume"] if run.is_dir() else []
        run_command(["train", *RECIPES[name].split(), *graph, *data, *resume])
    return run / "model"


def states(name: str, run: Path) -> pd.DataFrame:
    """Returns the states that a run was evaluated at."""
    log = pd.read_json(run / "log.jsonl", lines=True)
    shown = ["step", "seconds", "ce", "kl", "epsilon", "density", "lambda"]
    found = log.loc[log["ce"].notna()].reindex(columns=shown)
    begun = json.loads((run / "run.json").read_text("utf-8"))
    of_a_step = begun["config"]["batch_size"] * begun["data"]["context"]
    return found.assign(run=name, tokens=found["step"] * of_a_step)


def rows_of(
    documents: list[str], tokenizer: Any, context: int, n_rows: int
) -> Int[Tensor, "row pos"]:
    """Returns sequences from all over the documents, which are put end to end as for training."""
    ids = token_ids_of(tokenizer, separator_of(tokenizer), documents)
    rows = torch.tensor(ids[: len(ids) // context * context]).view(-1, context)
    return rows[torch.linspace(0, len(rows) - 1, min(n_rows, len(rows))).long()]


@torch.no_grad()
def measured(models: dict[str, Any], tokens: Int[Tensor, "row pos"]) -> pd.DataFrame:
    """Returns a row for each model, the first of which is what the others are measured against.

    Means over the sequences, and their standard errors; that of a difference is of the differences.
    """
    numbers: dict[str, list[list[float]]] = {name: [] for name in models}
    device = next(next(iter(models.values())).parameters()).device
    for sequence in tokens.to(device).split(1):
        first: Any = None
        for name, model in models.items():
            is_sparse = is_gated(model) or is_top_k(model)
            with record_open_edges(model) if is_sparse else nullcontext() as edges:
                logits = model(sequence)
            ce = cross_entropy(logits, sequence).item()
            first = (logits, ce) if first is None else first
            kl = distillation_loss(logits, first[0]).item()
            density = density_of(edges, context=tokens.shape[1]).overall if edges else 1.0
            numbers[name].append([ce, ce - first[1], kl, density])
    rows = []
    for name, values in numbers.items():
        each = torch.tensor(values, dtype=torch.float64)
        errors = (each.std(dim=0) / len(each) ** 0.5).tolist()
        row: dict[str, Any] = {"model": name, "sequences": len(each)}
        names = ("ce", "difference", "kl", "density")
        for what, mean, error in zip(names, each.mean(dim=0).tolist(), errors, strict=True):
            row |= {what: mean, f"{what}_error": error}
        rows.append(row)
    return pd.DataFrame(rows)


def measure_text(
    path: Path, models: Callable[[], dict[str, Any]], texts: Path, n_tokens: int
) -> None:
    """Writes the cells of the table of held-out text that are not there yet."""
    files = [*sorted(texts.glob("heldout_*.jsonl")), texts / "speeches.jsonl"]
    cells = list(itertools.product(files, CONTEXTS))
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame({"text": [], "context": []})
    there = set(zip(table["text"], table["context"], strict=True))
    sparse: dict[str, Any] = {}
    for file, context in cells:
        kind = file.stem.removeprefix("heldout_")
        if (kind, context) in there:
            continue
        if not sparse:
            sparse = models()
            for k in TOP_K:
                same = copy_model(sparse["dense"], share_weights=True)
                sparse[f"dense, top {k}"] = add_top_k(same, k)
        documents = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
        tokens = rows_of(documents, sparse["dense"].tokenizer, context, n_tokens // context)
        cell = measured(sparse, tokens)
        about = {"text": kind, "context": context, **versions()}
        table = pd.concat([table, cell.assign(**about)]) if len(table) else cell.assign(**about)
        write_text(path, table.to_csv(index=False))
        say(f"{path}: {kind}, {context} tokens")


def measure_behaviours(path: Path, models: Callable[[], dict[str, Any]], n_prompts: int) -> None:
    """Writes how well each model that is not in the table yet does each behaviour."""
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame({"model": []})
    if set(table["model"]) >= {"dense", "sparse", "control"}:
        return
    for name, model in models().items():
        if name in set(table["model"]):
            continue
        found = behaviours(
            model,
            [get_task(task) for task in task_names()],
            n_prompts=n_prompts,
            on_step=lambda task, name=name: say(f"{path}: {name}, {task}"),
        )
        rows = behaviours_table(found).assign(model=name)
        for share in ("right_beats_wrong", "top"):
            rows[f"{share}_error"] = (rows[share] * (1 - rows[share]) / rows["n_prompts"]) ** 0.5
        table = pd.concat([table, rows]) if len(table) else rows
        write_text(path, with_shares(table).to_csv(index=False))


def measure_heads(path: Path, models: Callable[[], dict[str, Any]], n_prompts: int) -> None:
    """Writes the rows of the table of heads that are not there yet."""
    columns: dict[str, list[str]] = {"task": [], "model": []}
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns)
    there = set(zip(table["task"], table["model"], strict=True))
    for name in ("dense", *RECIPES):
        missing = [task for task in HEADS_OF if (task, name) not in there]
        if not missing:
            continue
        for row in heads_table({name: models()[name]}, missing, n_prompts):
            table = pd.concat([table, row]) if len(table) else row
            write_text(path, table.to_csv(index=False))
            say(f"{path}: {name}, {row['task'].iloc[0]}")


def with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with the share of the dense model's margin that each model keeps.

    Its standard error is that of a ratio of independent means, to first order. The means are over
    the same prompts; where models find the same ones easy, it is too large.
    """
    dense = table[table["model"] == "dense"].set_index("task")
    base, base_error = (dense[name].reindex(table["task"]).to_numpy() for name in _MARGIN)
    margin, error = (table[name].to_numpy() for name in _MARGIN)
    kept = margin / base
    kept_error = ((error / base) ** 2 + (kept * base_error / base) ** 2) ** 0.5
    return table.assign(kept=kept, kept_error=kept_error)


_MARGIN = ("margin", "margin_error")


def compare(
    out: Path, sources: dict[str, str], granularities: list[str], prompts: int, device: str
) -> None:
    """Compares the circuits of the behaviours that the dense model does, unless that is there."""
    folder = out / "compare"
    if folder.is_dir():
        return
    table = pd.read_csv(out / "behaviours.csv")
    done = table.loc[(table["model"] == "dense") & table["does"], "task"]
    pair = ["--dense", sources["dense"], "--sparse", sources["sparse"]]
    control = ["--model", f"control={sources['control']}", "--prompts", str(prompts)]
    kinds = [part for kind in granularities for part in ("--granularity", kind)]
    tasks = [part for task in done for part in ("--task", task)]
    place = ["--device", device, "--out", str(folder)]
    resume = ["--resume"] if folder.with_name("compare.parts").exists() else []
    run_command(["compare", *pair, *control, *kinds, *tasks, *place, *resume])


def compare_pruned(out: Path, sources: dict[str, str], tasks: list[str], device: str) -> None:
    """Compares pruned circuits, a folder for each behaviour that has none, and joins the tables."""
    models = ["--dense", sources["dense"], "--sparse", sources["sparse"]]
    models += ["--model", f"control={sources['control']}"]
    for task in tasks:
        folder = out / "pruned" / task
        if not folder.is_dir():
            resume = ["--resume"] if folder.with_name(f"{task}.parts").exists() else []
            place = ["--task", task, "--device", device, "--out", str(folder), *resume]
            run_command(["compare", *models, *PRUNED.split(), *place])
    for name, table in (("pruned", "summary"), ("pruned_others", "others")):
        found = [pd.read_csv(out / "pruned" / task / f"{table}.csv") for task in tasks]
        write_text(out / f"{name}.csv", pd.concat(found).to_csv(index=False))


def put_into_docs(out: Path, docs: Path) -> None:
    """Puts the tables that there are into the docs, and fills the page."""
    for name, made in TABLES.items():
        if (out / made).is_file():
            write_text(docs / "real_model" / name, (out / made).read_text("utf-8"))
    fill_page(docs)


def main() -> None:
    """Reads the command line and makes what is not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--embedded", action="store_true", help="take the embedded pair; no run")
    parser.add_argument("--device", default="cpu", help="where all this is done, such as cuda")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of each new cell of text")
    parser.add_argument("--behaviour-prompts", type=int, default=BEHAVIOUR_PROMPTS)
    parser.add_argument("--heads-prompts", type=int, default=40, help="prompts of OUT/heads.csv")
    parser.add_argument(
        "--granularities",
        nargs="*",
        choices=list(GRANULARITIES),
        default=["head", "edge"],
        help="what circuits are compared of; none after the option: no comparison",
    )
    parser.add_argument("--prompts", type=int, default=50, help="prompts in each set of compare")
    parser.add_argument(
        "--pruned",
        nargs="*",
        choices=HEADS_OF,
        default=["greater_than", "ioi"],
        help="behaviours whose circuits are pruned; none after the option: none",
    )
    parser.add_argument(
        "--runs", nargs="*", metavar="NAME=FOLDER", help="other runs than OUT's for OUT/run.csv"
    )
    parser.add_argument("--docs", type=Path, help="folder of the docs to put the tables into")
    arguments = parser.parse_args()
    if arguments.tokens < 2 * max(CONTEXTS):
        parser.error(f"--tokens is {arguments.tokens}; a cell needs at least {2 * max(CONTEXTS)}")
    try:
        checked_device(arguments.device)
        find_folder(DENSE)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "text" / "sources.md").is_file():  # which is written last
        write_texts(out / "text")
    sources = {"dense": DENSE}
    for name in RECIPES:
        trained = None if arguments.embedded else train(name, out, arguments.device)
        sources[name] = f"{DENSE}-{name}" if trained is None else str(trained)
    torch.set_num_threads(1)  # Sums are added in another order with more.
    loaded: dict[str, Any] = {}

    def models() -> dict[str, Any]:
        if not loaded:
            loaded.update(
                {n: load_model(one, device=arguments.device) for n, one in sources.items()}
            )
        return dict(loaded)

    measure_text(out / "text.csv", models, out / "text", arguments.tokens)
    measure_behaviours(out / "behaviours.csv", models, arguments.behaviour_prompts)
    runs = arguments.runs or ([] if arguments.embedded else [f"{n}={out}/{n}.run" for n in RECIPES])
    if runs:
        parts = (one.partition("=") for one in runs)
        table = pd.concat([states(name, Path(run)) for name, _, run in parts])
        write_text(out / "run.csv", table.to_csv(index=False))
    measure_heads(out / "heads.csv", models, arguments.heads_prompts)
    loaded.clear()  # The comparison loads them anew.
    if arguments.granularities:
        compare(out, sources, arguments.granularities, arguments.prompts, device=arguments.device)
    if arguments.pruned:
        compare_pruned(out, sources, arguments.pruned, arguments.device)
    if arguments.docs is not None:
        put_into_docs(out, arguments.docs)


if __name__ == "__main__":
    main()
