"""In how many heads the attribution of a single prompt lies.

The count of a circuit's table is of scores that are means over prompts: heads that matter in some
prompts each count. Prompt by prompt there are fewer. As the count of all prompts it needs no
intervention (`n_holding`).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from circuits.attribute import METHODS
from circuits.choices import check_choice
from circuits.discovery.rank import n_holding
from circuits.intervene.experiment import Experiment


def heads_holding(
    experiments: Experiment | Mapping[str, Experiment],
    share: float = 0.8,
    *,
    method: str = "attribution_patching",
) -> pd.DataFrame:
    """Returns how many heads hold a share of all absolute attribution to heads, on each prompt.

    A row for each model and prompt: `model`, `prompt` (its number), `template`, `heads`, and `of`,
    the number of heads that there are.

    Args:
        experiments: The model and prompts (`prepare_experiment`), or several by name.
        share: The share, over 0 and up to 1.
        method: How heads are scored; one of `circuits.attribute.METHODS`.

    Raises:
        ValueError: a share that is none, or an unknown method.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be over 0 and at most 1")
    check_choice("method", method, METHODS)
    several = experiments if isinstance(experiments, Mapping) else {"model": experiments}
    rows = []
    for name, experiment in several.items():
        heads = experiment.graph.nodes_of_kind("head")
        for number, template in enumerate(experiment.prompts.templates):
            scores = METHODS[method](experiment.subset([number]), attention_edges=False)
            held = n_holding(scores.nodes[heads], share)
            rows.append((name, number, template, held, len(heads)))
    return pd.DataFrame(rows, columns=["model", "prompt", "template", "heads", "of"])
