"""Cross-evaluation: does the circuit of one model carry the behaviour in the other?

A sparse twin shares its components with the dense model by name. If its circuit, run in the dense
model, recovers the behaviour too, both models do it in the same place. If it does no better than
a random circuit of its size, post-training has moved the behaviour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.discovery.evidence import N_RANDOM
from circuits.discovery.rank import components_of, select_edges
from circuits.intervene.ablate import run_edges
from circuits.intervene.experiment import Experiment, faithfulness, prepare_experiment
from circuits.prompts import Prompts
from circuits.results.discovery import Discovery
from circuits.results.transfer import Transfer
from circuits.tasks import Task
from circuits.workers import ALONE, Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model


def transfer(
    models: dict[str, Model],
    prompts: dict[str, Prompts],
    task: Task,
    discoveries: dict[str, Discovery],
    *,
    workers: Workers = ALONE,
) -> list[Transfer]:
    """Returns the faithfulness of each model's circuits of heads, MLPs and edges in the other.

    Args:
        models: Two models with the same graph, by name.
        prompts: The same reporting prompts for each.
        task: The behaviour.
        discoveries: What was found in each model, by the same config.
        workers: The processes that share the prompts.
    """
    one, two = models
    rows = []
    for name, other in ((one, two), (two, one)):
        config = discoveries[other].config
        experiment = prepare_experiment(
            models[other],
            prompts[other],
            metric=task.metric,
            ablation=config.ablation,
            gates=config.gates,
            workers=workers,
        )
        graph = experiment.graph

        def measure(edges: Tensor, experiment: Experiment = experiment) -> float:
            values = run_edges(experiment, edges)
            return float(faithfulness(values, experiment.full, experiment.empty))

        for granularity, circuit_of in discoveries[name].circuits.items():
            if granularity == "attention_edge":
                continue
            generator = torch.Generator().manual_seed(config.seed)
            candidates = components_of(graph, granularity)
            random_values = []
            for _ in range(N_RANDOM):
                order = torch.randperm(len(candidates), generator=generator)
                chosen = candidates[order[: int(circuit_of.circuit.size)]]
                random_values.append(measure(select_edges(graph, granularity, chosen)))
            rows.append(
                Transfer(
                    task=task.name,
                    granularity=str(granularity),
                    found_in=name,
                    run_in=other,
                    faithfulness=measure(circuit_of.circuit.edges),
                    random=sum(random_values) / N_RANDOM,
                    own=discoveries[other].circuits[granularity].faithfulness,
                )
            )
    return rows
