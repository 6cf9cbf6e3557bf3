"""Everything that a comparison says, measured: of two models side by side and others, or of one.

`circuits.comparison.compare_models` and `circuits.comparison.study_model` say what is asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.comparison.examples import attention_examples
from circuits.comparison.parts import KeptParts
from circuits.comparison.roles import head_roles
from circuits.comparison.searches import processes_for, search_all, who
from circuits.comparison.transfer import transfer
from circuits.gate.density import dense_density, measure_density
from circuits.gate.gate import is_gated
from circuits.gate.top_k import is_top_k
from circuits.intervene.experiment import (
    CannotDoTask,
    check_does_task,
    graph_of,
    prepare_experiment,
)
from circuits.models.hf_files import quantization_of
from circuits.models.load import tokenizer_of, versions
from circuits.models.tokenization import tokenizer_fingerprint
from circuits.prompts import Prompts, is_single_token
from circuits.results.comparison import Comparison, ModelFacts, sides_of
from circuits.results.discovery import DiscoverConfig, Discovery
from circuits.results.roles import HeadRole
from circuits.results.transfer import Transfer
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.train import evaluate
from circuits.tasks import Task, TaskPrompts
from circuits.tasks.corpus import words
from circuits.workers import Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model

N_SEQUENCES = 64
CONTEXT = 128


def gather(
    models: Mapping[str, Model],
    tasks: Sequence[Task],
    config: DiscoverConfig,
    *,
    names: Mapping[str, str],
    twins: Sequence[str] = (),
    text: Tensor | Mapping[str, Tensor] | None,
    workers: Workers,
    processes: int | None,
    parts: str | Path | None = None,
    on_kept: Callable[[KeptParts], None] = lambda _kept: None,
    on_step: Callable[[str], None],
) -> Comparison:
    """Returns what is found in the models; arguments and errors are those of `compare`.

    `sides_of` says which of the models stand side by side: their circuits are run in each other,
    and their heads are matched. `names` are what those are called in the results.
    """
    started = time.perf_counter()
    processes = processes_for(models.values(), workers, processes)
    sides = sides_of(models)
    read_as = {side: tokenizer_fingerprint(tokenizer_of(one)) for side, one in models.items()}
    texts = _texts(models, read_as, text)
    # All prompts are built first: bad ones are refused before anything long is run.
    prompts = {
        task.name: {
            side: task.build(
                tokenizer_of(model),
                n_ranking=config.n_prompts,
                n_sizing=config.n_prompts,
                n_reporting=config.n_prompts,
                seed=config.seed,
            )
            for side, model in models.items()
        }
        for task in tasks
    }
    facts = {}
    for side, model in models.items():
        shown, first = names.get(side, side), prompts[tasks[0].name][side].reporting
        facts[side] = _model_facts(model, shown, texts.get(side), first, read_as[side])
        on_step(f"{side} cross-entropy and density")
    refused = {
        task.name: _why_not(models, task, prompts[task.name], config.ablation, workers)
        for task in tasks
    }
    _check_some_left(refused, sides)
    searched = [
        (task, side)
        for task in tasks
        if not any(side in refused[task.name] for side in sides)
        for side in models
        if side not in refused[task.name]
    ]
    discoveries, kept = search_all(
        searched,
        models,
        prompts,
        config,
        workers=workers,
        processes=processes,
        parts=parts,
        on_kept=on_kept,
        on_step=on_step,
    )
    done = [task for task in tasks if task.name in discoveries]
    shown_models = {side: models[side] for side in sides}
    same_tokens = len({read_as[side] for side in sides}) == 1
    transfers: list[Transfer] = []
    roles: list[HeadRole] = []
    for task in done:
        reporting = {side: prompts[task.name][side].reporting for side in sides}
        own = {side: discoveries[task.name][side] for side in sides}
        if len(sides) == 2 and _same_graph(shown_models):
            transfers += transfer(shown_models, reporting, task, own, workers=workers)
        if same_tokens:
            heads: dict[str, Collection[str]] = {side: _heads(one) for side, one in own.items()}
            roles += head_roles(shown_models, reporting, heads, task.name)
        on_step(f"{task.name}: roles of heads")
    return Comparison(
        models=facts,
        discoveries=discoveries,
        examples={
            task.name: attention_examples(
                shown_models,
                task,
                {side: prompts[task.name][side] for side in sides},
                {side: discoveries[task.name][side] for side in sides},
            )
            for task in done
            if same_tokens
        },
        transfers=tuple(transfers),
        roles=tuple(roles),
        twins=tuple(twins),
        refused=refused,
        run={
            "versions": versions(),
            "seed": config.seed,
            "device": str(models[sides[0]].W_E.device),
            "seconds": round(kept.seconds + time.perf_counter() - started, 1),
            "target": config.target,
            "method": config.method,
            "method_options": dict(config.method_options),
            "selection": config.selection,
            "ablation": config.ablation,
            "gates": config.gates,
            "prune": config.prune,
            "prune_margin": config.prune_margin,
            "prompts": config.n_prompts,
            **({"kept_parts": len(kept.discoveries)} if kept.discoveries else {}),
        },
    )


def _same_graph(pair: Mapping[str, Model]) -> bool:
    dense, sparse = (graph_of(model).mask.shape for model in pair.values())
    return dense == sparse


def _heads(discovery: Discovery) -> list[str]:
    """The heads of the circuit of heads, or of edges where no heads were looked for."""
    circuits = discovery.circuits
    first = circuits.get("head") or circuits.get("edge") or next(iter(circuits.values()))
    return first.circuit.heads


def _texts(
    models: Mapping[str, Model],
    read_as: Mapping[str, str],
    text: Tensor | Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The held-out text in each model's own tokens; nothing if there is none for all of them."""
    if text is None:
        if not all(_knows_corpus(model) for model in models.values()):
            return {}
        context = min(CONTEXT, *(model.cfg.n_ctx for model in models.values()))
        return {
            side: CorpusStream(model.tokenizer, context=context).held_out("selection", N_SEQUENCES)
            for side, model in models.items()
        }
    if isinstance(text, Tensor):
        first = next(iter(models))
        others = [side for side in models if read_as[side] != read_as[first]]
        if others:
            raise ValueError(
                f"text is given as one model's tokens, but the tokenizers of {first} and "
                f"{others[0]} differ; give it by model, as {{{first!r}: tokens, {others[0]!r}: "
                "tokens, ...}"
            )
        return dict.fromkeys(models, text)
    if set(text) != set(models):
        raise ValueError(
            f"text is given for {', '.join(text)}; give it for {', '.join(models)}, each in its "
            "own tokens"
        )
    return dict(text)


def _why_not(
    models: Mapping[str, Model],
    task: Task,
    prompts: Mapping[str, TaskPrompts],
    ablation: str,
    workers: Workers,
) -> dict[str, str]:
    """Why models have no circuit for a task, by model; only those that do not do it."""
    found = {}
    for side, model in models.items():
        try:
            # What `discover` asks of its prompts.
            for part in (prompts[side].sizing, prompts[side].reporting):
                check_does_task(
                    prepare_experiment(
                        model, part, metric=task.metric, ablation=ablation, workers=workers
                    )
                )
        except CannotDoTask as error:
            found[side] = str(error)
        except ValueError as error:
            raise ValueError(f"{who(side)}task {task.name}: {error}") from error
    return found


def _check_some_left(refused: Mapping[str, Mapping[str, str]], sides: Sequence[str]) -> None:
    reasons = {
        task: f"task {task}: {f'{side} model: ' if len(sides) > 1 else ''}{why[side]}"
        for task, why in refused.items()
        for side in reversed(sides)
        if side in why
    }
    if len(reasons) == len(refused):
        what = "compare" if len(sides) > 1 else "look at"
        raise CannotDoTask(f"nothing is left to {what}; " + "; ".join(reasons.values()))


def _knows_corpus(model: Model) -> bool:
    tokenizer = tokenizer_of(model)
    return all(is_single_token(tokenizer, word) for word in words())


def _model_facts(
    model: Model, name: str, text: Tensor | None, prompts: Prompts, tokenizer: str
) -> ModelFacts:
    """Cross-entropy and density on `text`; without it, density on the prompts alone."""
    ce = None
    tokens = prompts.clean if text is None else text
    tokens = tokens.to(model.W_E.device)
    if text is not None:
        ce, density = evaluate(model, tokens)
        if not math.isfinite(ce):
            raise ValueError(
                f"the model {name!r} has a cross-entropy of {ce} on held-out text of "
                f"{tokens.shape[1]} tokens; look for NaN or infinity in its weights, such as those "
                "of late positions, which no prompt reaches"
            )
    elif is_gated(model) or is_top_k(model):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        mask = (positions <= prompts.last[:, None].to(tokens.device)).long()
        density = measure_density(model, tokens, mask)
    else:
        density = dense_density(model, tokens.shape[1])
    return ModelFacts(
        name=name,
        ce=ce,
        density=density.overall,
        density_per_layer=tuple(density.per_layer.tolist()),
        density_per_head=tuple(tuple(heads) for heads in density.per_head.tolist()),
        context=density.context,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokenizer=tokenizer,
        quantization=quantization_of(model),
    )
