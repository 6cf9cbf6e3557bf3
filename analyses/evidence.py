"""All evidence on the embedded models: the comparison with controls, and its robustness.

    python analyses/evidence.py --out docs/results

Runs `circuits compare` on five behaviours with the pair and controls (the dense model trained on
without a gate; the dense model with the 4 highest scores of each query only, untrained), two sparse
twins from other seeds, `circuits compare --prune` and `circuits robustness` on
two of them, copies their tables into OUT, and writes the page that is made of them next to it
(analyses/results_page.py). Takes some hours on two cores; a part that is in `--work` already
is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
from pathlib import Path

import pandas as pd
import torch
from heads_of_prompts import heads_table
from results_page import write_page

from circuits.cli import main as circuits
from circuits.figures import frontier_figure, save_figure
from circuits.files import write_text
from circuits.models.load import load_model, tokenizer_of
from circuits.tasks.ioi import THINGS

TASKS = ("ioi", "greater_than", "induction", "pronoun", "subject_verb")
CONTROLS = {"dense-finetuned": "dense-finetuned", "dense-top4": "dense@top4"}
TWINS = {"sparse-seed1": "sparse-seed1", "sparse-seed2": "sparse-seed2"}
KEPT = ("models", "summary", "others", "seeds", "evidence", "transfer", "roles", "overlap")


N_SENTENCES = 40
N_PROMPTS = 40


def run(arguments: list[str]) -> None:
    """Runs a command of the package; the script ends with its exit code if it fails."""
    code = circuits(arguments)
    if code != 0:
        raise SystemExit(code)


@torch.no_grad()
def verbs_by_number(name: str) -> dict[str, object]:
    """Returns how much a model prefers "are" to "is", by the numbers of both nouns.

    The corpus never has two nouns of one number, so a model may answer by either noun; prompts
    with two of one number tell by which.
    """
    model = load_model(name)
    tokenizer = tokenizer_of(model)
    are, is_ = (tokenizer.convert_tokens_to_ids(verb) for verb in ("are", "is"))
    row: dict[str, object] = {"model": name}
    for subject, other in itertools.product(("singular", "plural"), repeat=2):
        rng = random.Random(0)
        endings = ["s" if number == "plural" else "" for number in (subject, other)]
        texts = [
            "The {0}{2} near the {1}{3}".format(*rng.sample(THINGS, 2), *endings)
            for _ in range(N_SENTENCES)
        ]
        tokens = model.to_tokens(texts, padding_side="right")
        logits = model(tokens)[:, -1]
        row[f"{subject} subject, {other} noun"] = (logits[:, are] - logits[:, is_]).mean().item()
    return row


def write_frontier(tables: Path, path: Path) -> None:
    """Draws cross-entropy against density of the models of real text.

    The states of the run were measured on other sequences: they are drawn as far from the dense
    model's cross-entropy as they were there.
    """
    models, run = (pd.read_csv(tables / f"real_text{name}.csv") for name in ("", "_run"))
    series = models["model"].str.replace(r"top \d+", "top k", regex=True)
    dense = float(models.loc[models["model"] == "dense", "ce"].item())
    passed = run.assign(series="sparse, along its run", ce=dense + run["ce"] - run["tau"])
    points = pd.concat([passed, models.assign(series=series)])
    save_figure(frontier_figure(points, bound=dense), path)


def main() -> None:
    """Reads the command line and runs what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--real-text", type=Path, help="what analyses/real_text.py wrote")
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="full results")
    arguments = parser.parse_args()
    work, out = arguments.work, arguments.out
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    if not (work / "compare").is_dir():
        others = [part for name in CONTROLS for part in ("--model", f"{name}={CONTROLS[name]}")]
        others += [part for name in TWINS for part in ("--twin", f"{name}={TWINS[name]}")]
        tasks = [part for name in TASKS for part in ("--task", name)]
        run(["compare", *others, *tasks, "--out", str(work / "compare")])
    if not (work / "pruned").is_dir():
        run(["compare", "--prune", "--out", str(work / "pruned")])
    if not (work / "robustness" / "robustness.csv").is_file():
        run(["robustness", "--out", str(work / "robustness")])
    for name in KEPT:
        shutil.copyfile(work / "compare" / f"{name}.csv", out / f"{name}.csv")
    shutil.copyfile(work / "pruned" / "summary.csv", out / "pruned.csv")
    names = ("dense", "sparse", "dense-finetuned", *TWINS)
    verbs = pd.DataFrame([verbs_by_number(name) for name in names])
    write_text(out / "verbs.csv", verbs.to_csv(index=False))
    heads = pd.concat(
        row for name in names for row in heads_table({name: load_model(name)}, TASKS, N_PROMPTS)
    )
    write_text(out / "heads.csv", heads.to_csv(index=False))
    shutil.copyfile(work / "robustness" / "robustness.csv", out / "robustness.csv")
    if arguments.real_text is not None:
        for name in ("real_text", "real_text_run"):
            shutil.copyfile(arguments.real_text / f"{name}.csv", out / f"{name}.csv")
        for name in ("summary", "others", "models"):
            found = arguments.real_text / "compare" / f"{name}.csv"
            shutil.copyfile(found, out / f"real_text_{name}.csv")
        write_frontier(out, out.parent / "images" / "frontier.png")
    write_page(out, out.with_suffix(".md"))


if __name__ == "__main__":
    main()
