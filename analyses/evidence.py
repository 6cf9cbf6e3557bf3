"""All evidence on the embedded models: the comparison with controls, and its robustness.

    python analyses/evidence.py --out docs/results

Runs `circuits compare` on five behaviours with controls beside the pair (the dense model trained on
without a gate; the dense model with the 4 highest scores of each query only, untrained), two sparse
twins from other seeds, and `circuits robustness` on
two of them, copies their tables into OUT, and writes the page beside it that is made of them
(analyses/results_page.py). Takes less than an hour on two cores; a part that is in `--work` already
is not run again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from results_page import write_page

from circuits.cli import main as circuits

TASKS = ("ioi", "greater_than", "induction", "pronoun", "subject_verb")
CONTROLS = {"dense-finetuned": "dense-finetuned", "dense-top4": "dense@top4"}
TWINS = {"sparse-seed1": "sparse-seed1", "sparse-seed2": "sparse-seed2"}
KEPT = ("models", "summary", "others", "seeds", "evidence", "transfer", "roles", "overlap")


def run(arguments: list[str]) -> None:
    """Runs a command of the package; the script ends with its exit code if it fails."""
    code = circuits(arguments)
    if code != 0:
        raise SystemExit(code)


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
    if not (work / "robustness" / "robustness.csv").is_file():
        run(["robustness", "--out", str(work / "robustness")])
    for name in KEPT:
        shutil.copyfile(work / "compare" / f"{name}.csv", out / f"{name}.csv")
    shutil.copyfile(work / "robustness" / "robustness.csv", out / "robustness.csv")
    if arguments.real_text is not None:
        shutil.copyfile(arguments.real_text / "real_text.csv", out / "real_text.csv")
        for name in ("summary", "others", "models"):
            found = arguments.real_text / "compare" / f"{name}.csv"
            shutil.copyfile(found, out / f"real_text_{name}.csv")
    write_page(out, out.with_suffix(".md"))


if __name__ == "__main__":
    main()
