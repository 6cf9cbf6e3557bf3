"""How far a pruned circuit is from the smallest one, on random models small enough to try all.

    python analyses/pruned_against_smallest.py --seeds 10

Each model has two layers of one head and no MLP, so 12 edges. A row has three sizes: that of the
prefix of the ranking, of what pruning leaves of it, and of the smallest of all sets of edges that
reach the target, by brute force.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import pandas as pd
import torch

from circuits.attribute import attribution_patching
from circuits.discovery.prune import prune
from circuits.discovery.ranked import RankedComponents, first_of, search_ranked
from circuits.intervene.experiment import Experiment, faithfulness, prepare_experiment
from circuits.models.load import new_model
from circuits.prompts import Prompts

TARGET, N_PROMPTS, N_TOKENS, LENGTH = 0.9, 10, 20, 5


def random_experiment(seed: int) -> Experiment:
    """Returns a random model with prompts whose answers are what corruption hurts most."""
    torch.manual_seed(seed)
    config = {"n_layers": 2, "n_heads": 1, "d_model": 16, "d_head": 8, "d_vocab": N_TOKENS}
    model = new_model(config | {"n_ctx": LENGTH, "attn_only": True, "device": "cpu"})
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # Norms and attention that do something.
        clean, corrupted = torch.randint(N_TOKENS, (2, N_PROMPTS, LENGTH))
        change = model(clean)[:, -1] - model(corrupted)[:, -1]
    prompts = Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.full((N_PROMPTS,), LENGTH),
        answers=change.argmax(dim=-1, keepdim=True),
        wrong_answers=change.argmin(dim=-1, keepdim=True),
        templates=("random",) * N_PROMPTS,
    )
    return prepare_experiment(model, prompts, metric="logit_diff")


def sizes_of(seed: int) -> dict[str, int]:
    """Returns the three sizes of one model."""
    experiment = random_experiment(seed)
    ranked = RankedComponents.of(attribution_patching(experiment), "edge", "absolute")
    search = search_ranked(ranked, experiment, TARGET)
    prefix = first_of(ranked.orders, search.chosen)
    left = prune(ranked, experiment, search).chosen

    def reaches(edges: tuple[int, ...]) -> bool:
        values = ranked.run(experiment, [torch.tensor(edges, dtype=torch.long)])
        return bool(faithfulness(values, experiment.full, experiment.empty) >= TARGET)

    smallest = next(
        size
        for size in range(len(left[0]) + 1)
        if size == len(left[0]) or any(map(reaches, combinations(ranked.order.tolist(), size)))
    )
    return {
        "seed": seed,
        "prefix": int(ranked.circuit(prefix).size),
        "pruned": len(left[0]),
        "smallest": smallest,
    }


def main() -> None:
    """Prints one row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="How many models.")
    table = pd.DataFrame([sizes_of(seed) for seed in range(parser.parse_args().seeds)])
    print(table.to_string(index=False))  # noqa: T201


if __name__ == "__main__":
    main()
