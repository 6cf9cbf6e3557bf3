"""In how many heads the attribution of single prompts lies, of several models and behaviours.

Imported by the analyses that make this table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from circuits.discovery.holding import heads_holding
from circuits.intervene import prepare_experiment
from circuits.models.backend import Model
from circuits.models.load import tokenizer_of
from circuits.tasks import get_task


def heads_table(
    models: Mapping[str, Model], tasks: Sequence[str], n_prompts: int
) -> Iterator[pd.DataFrame]:
    """Yields a row for each model and behaviour: in how many heads 80 % lies.

    The columns are `task`, `model`, the `mean` over prompts, its standard error `sem`, and `count`.
    """
    for name, model in models.items():
        for task in map(get_task, tasks):
            (prompts,) = task.draw(tokenizer_of(model), n_prompts)
            experiment = prepare_experiment(model, prompts, metric=task.metric)
            held = heads_holding({name: experiment})["heads"]
            known = {"task": [task.name], "model": [name]}
            yield pd.DataFrame(known | {"mean": held.mean(), "sem": held.sem(), "count": len(held)})
