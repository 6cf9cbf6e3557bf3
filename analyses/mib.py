"""The MIB benchmark's measures on the embedded pair, with prompts of our own in its columns.

    python analyses/mib.py --out docs/mib

The embedded models know too few words for the benchmark's rows, so the rows are made from the task
`ioi_swap`, whose corrupted prompt has the same change as the benchmark's own counterfactual: CPR
and CMD here compare methods and models with each other, and with no table of the benchmark. Runs
`circuits mib` for both models and two methods, and writes its tables as one, with the rows.
About a minute of one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd

from circuits.cli import main as circuits
from circuits.files import write_text
from circuits.models.load import load_model, tokenizer_of
from circuits.tasks import get_task

MODELS = ("dense", "sparse")
METHODS = ("attribution_patching", "integrated_gradients")
N_PROMPTS = 40


def mib_rows(tokenizer: object, n: int) -> list[dict[str, object]]:
    """Returns prompts of `ioi_swap` in the columns of the benchmark's IOI."""
    return [
        {
            "prompt": pair.clean,
            "metadata": {
                "indirect_object": pair.answers[0].strip(),
                "subject": pair.wrong_answers[0].strip(),
            },
            "s2_io_flip_counterfactual": {"prompt": pair.corrupted},
        }
        for pair in get_task("ioi_swap").pairs(tokenizer, n, 0)  # type: ignore[arg-type]
    ]


def main() -> None:
    """Makes the rows, runs the command, and writes its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = mib_rows(tokenizer_of(load_model("dense")), 2 * N_PROMPTS)
    write_text(out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tables: dict[str, list[pd.DataFrame]] = {"summary": [], "sizes": []}
    for model in MODELS:
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                code = circuits(
                    ["mib", "--model", model, "--task", "ioi", "--data", str(out / "rows.jsonl"),
                     "--prompts", str(N_PROMPTS), "--method", method, "--out", folder]
                )  # fmt: skip
                if code != 0:
                    raise SystemExit(code)
                for name, frames in tables.items():
                    frame = pd.read_csv(Path(folder) / f"{name}.csv")
                    if name == "sizes":
                        frame.insert(0, "model", model)
                        frame.insert(1, "method", method)
                    frames.append(frame)
    for name, frames in tables.items():
        frame = pd.concat(frames).drop(columns=["data", "splits"], errors="ignore")
        write_text(out / f"{name}.csv", frame.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
