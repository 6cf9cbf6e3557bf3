"""How often the interval of a size holds what wholly other prompts say.

    python analyses/interval_coverage.py --out docs/interval_coverage.csv

Circuits are looked for on several draws of prompts, each with its own seed. The interval of a
size, or of the ratio of dense to sparse, from one draw is then asked whether it holds the estimate
of each other draw. A true 95 % interval does not hold 95 % of other estimates, since they err too:
Student's interval from k halves holds P(|t| < t(0.975) / sqrt(2)) of them, with k - 1 degrees of
freedom.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import pandas as pd
from rich.progress import track

from circuits.discovery.find_circuits import discover
from circuits.files import write_text
from circuits.models.load import load_model
from circuits.results.comparison import SIDES
from circuits.results.discovery import DiscoverConfig, Evidence
from circuits.results.intervals import ratio_interval, spread_interval, t_quantile, t_tails

TASKS = ("ioi", "greater_than")
GRANULARITIES = ("head", "edge")


def main(out: Path, n_draws: int, n_prompts: int) -> None:
    """Writes the table anew after each draw, and prints it at the end."""
    config = DiscoverConfig(granularities=GRANULARITIES, n_prompts=n_prompts)
    models = {side: load_model(side) for side in SIDES}
    found: dict[tuple[str, str, str], list[Evidence]] = {}
    table = pd.DataFrame()
    for seed, task in track(list(itertools.product(range(n_draws), TASKS))):
        for side, model in models.items():
            for granularity, one in discover(model, task, config, seed=seed).circuits.items():
                found.setdefault((task, granularity, side), []).append(one)
        table = _table(found, config)
        write_text(out, table.to_csv(index=False))
    print(table.to_string(index=False))


def _table(
    found: dict[tuple[str, str, str], list[Evidence]], config: DiscoverConfig
) -> pd.DataFrame:
    freedom = config.redraws - 1
    expected = 1 - t_tails(t_quantile(freedom) / math.sqrt(2), freedom)
    rows = []
    for task, granularity in dict.fromkeys(key[:2] for key in found):
        dense, sparse = (found[task, granularity, side] for side in SIDES)
        pairs = list(zip(dense, sparse, strict=True))
        of_each = {
            **{side: [(one.size, *spread_interval(one.size, one.redrawn_sizes))
                      for one in found[task, granularity, side]] for side in SIDES},
            "ratio": [ratio_interval(one.size, other.size, one.redrawn_sizes, other.redrawn_sizes)
                      for one, other in pairs],
        }  # fmt: skip
        for what, several in of_each.items():
            held = [
                own[1] <= other[0] <= own[2] for own, other in itertools.permutations(several, 2)
            ]
            values = sorted(value for value, *_ in several)
            rows.append(
                {
                    "task": task,
                    "granularity": granularity,
                    "of": what,
                    "draws": len(several),
                    "prompts": config.n_prompts,
                    "smallest": values[0],
                    "median": values[len(values) // 2],
                    "largest": values[-1],
                    "held": sum(held) / len(held) if held else math.nan,
                    "expected": expected,
                }
            )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/interval_coverage.csv"))
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.out, arguments.draws, arguments.prompts)
