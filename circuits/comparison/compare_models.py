"""The main job: a dense model and its sparse twin on the same tasks, prompts, method and target.

`compare` runs discovery on both models and measures how good they are on plain text, so that
"simpler" is never bought with "worse" unseen. It returns a `Comparison`: plain values from which
tables, figures and the report are made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.comparison.examples import attention_examples
from circuits.comparison.parts import (
    KeptParts,
    describe_model,
    identity_of,
    read_parts,
    write_part,
)
from circuits.comparison.roles import head_roles
from circuits.comparison.transfer import transfer
from circuits.discovery.find_circuits import discover, steps_of
from circuits.files import file_name_of
from circuits.gate.density import dense_density, measure_density
from circuits.gate.gate import is_gated
from circuits.gate.top_k import is_top_k
from circuits.intervene.ablate import CannotDoTask, check_does_task, graph_of, prepare_experiment
from circuits.models.hf_files import quantization_of
from circuits.models.load import as_model, tokenizer_of, versions
from circuits.models.tokenization import tokenizer_fingerprint
from circuits.prompts import Prompts, is_single_token
from circuits.results.comparison import SIDES, Comparison, ModelFacts
from circuits.results.discovery import DiscoverConfig, Discovery
from circuits.results.roles import HeadRole
from circuits.results.transfer import Transfer
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.train import evaluate
from circuits.tasks import Task, TaskPrompts, find_tasks
from circuits.tasks.corpus import words
from circuits.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from circuits.models.backend import Model

    AnyModel = Model | PreTrainedModel | str | Path
    AnyTask = Task | str | Path

N_SEQUENCES = 64
CONTEXT = 128


def compare(
    dense: AnyModel,
    sparse: AnyModel,
    tasks: AnyTask | Sequence[AnyTask],
    config: DiscoverConfig | None = None,
    *,
    text: Int[Tensor, "sequences pos"] | Mapping[str, Tensor] | None = None,
    names: tuple[str, str] | None = None,
    others: Mapping[str, AnyModel] | None = None,
    twins: Sequence[str] = (),
    workers: Workers = ALONE,
    parts: str | Path | None = None,
    on_kept: Callable[[KeptParts], None] = lambda _kept: None,
    on_step: Callable[[str], None] = lambda _what: None,
    **settings: Any,
) -> Comparison:
    """Returns what discovery finds in both models, and how good and how sparse they are.

    The pair's circuits are also run in each other's model, and the roles of its heads measured.

    Args:
        dense: The dense model. A name, a folder or a Hugging Face model is loaded as
            `circuits.models.load.as_model` says.
        sparse: Its sparse twin (any model: the names only say which side it stands on).
        tasks: The behaviours, or their names or files; one alone need not be in a list.
        config: How circuits are looked for; the defaults if left out.
        text: Held-out token sequences on which cross-entropy and density are measured: of all
            models, if they share a tokenizer, or by model ("dense", "sparse" and the names of
            `others`), each in its own tokens. Without them the synthetic corpus serves models that
            know its words; for others cross-entropy stays unknown, and density is measured on the
            tasks' prompts.
        names: What to call the two models in the results; by default as they were given, or
            "dense" and "sparse".
        others: More models by name, such as controls and further twins. A task that one of them
            cannot do is noted, not an error.
        twins: Which of the others are sparse twins too, from other training seeds: ratios then
            also have a mean and an interval over seeds.
        workers: The processes that share the prompts, from `circuits.workers.join_workers`; all
            of them make the same call and get the same comparison.
        parts: A folder that keeps what is found in each model for each task as soon as it is
            found, as `circuits.comparison.parts` says. What lies there of an earlier call and fits
            is not searched again. The caller removes it (`remove_parts`) when nothing more can be
            lost.
        on_kept: Called once with what was kept in `parts`, before anything is searched.
        on_step: Called with a few words after each forward run.
        settings: Fields of `DiscoverConfig` that differ from `config`, such as `n_prompts=20`.

    All models and tasks are checked before anything long is run. A task that one of the pair does
    not do is left out, and `Comparison.refused` says why. Where the pair's tokenizers differ, heads
    are not matched by where they attend and no prompt is shown, as the tokens are not the same.

    Raises:
        CannotDoTask: no task is left that both models of the pair do.
        ValueError: no tasks, bad prompts, a name twice, a twin that is not among the others, text
            in one tokenizer's tokens for models of several, or a model whose numbers are not
            finite.
    """
    config = replace(config or DiscoverConfig(), **settings)
    tasks = find_tasks(tasks)
    started = time.perf_counter()
    given = _named(dense, sparse, others or {})
    models = {side: as_model(one) for side, one in given.items()}
    unknown = [name for name in twins if name not in (others or {})]
    if unknown:
        raise ValueError(f"the twin {unknown[0]!r} is not among the other models")
    pair = {side: models[side] for side in SIDES}
    labels: dict[str, str] = dict(zip(SIDES, names or _labels(given), strict=True))
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
        shown, first = labels.get(side, side), prompts[tasks[0].name][side].reporting
        facts[side] = _model_facts(model, shown, texts.get(side), first, read_as[side])
        on_step(f"{side} cross-entropy and density")
    refused = {
        task.name: _why_not(models, task, prompts[task.name], config.ablation, workers)
        for task in tasks
    }
    _check_some_left(refused)
    searched = [
        (task, side)
        for task in tasks
        if not any(side in refused[task.name] for side in SIDES)
        for side in models
        if side not in refused[task.name]
    ]
    identities, kept = {}, KeptParts()
    if parts is not None:
        described = {side: describe_model(model) for side, model in models.items()}
        identities = {
            (task.name, side): identity_of(
                described[side], task, prompts[task.name][side], config, workers
            )
            for task, side in searched
        }
        # One process reads, so that all of them search for the same.
        kept = workers.agree(read_parts(parts, identities) if workers.is_first else None)
        on_kept(kept)
    discoveries: dict[str, dict[str, Discovery]] = {}
    for task, side in searched:
        found = kept.discoveries.get((task.name, side))
        if found is None:
            since = time.perf_counter()
            found = _discover(
                side, models[side], task, config, prompts[task.name][side], workers, on_step
            )
            if parts is not None and workers.is_first:
                key, seconds = (task.name, side), time.perf_counter() - since
                write_part(parts, key, identities[key], found, seconds)
        discoveries.setdefault(task.name, {})[side] = found
    done = [task for task in tasks if task.name in discoveries]
    same_tokens = read_as["dense"] == read_as["sparse"]
    transfers: list[Transfer] = []
    roles: list[HeadRole] = []
    for task in done:
        reporting = {side: prompts[task.name][side].reporting for side in SIDES}
        both = {side: discoveries[task.name][side] for side in SIDES}
        if _same_graph(pair):
            transfers += transfer(pair, reporting, task, both, workers=workers)
        if same_tokens:
            heads: dict[str, Collection[str]] = {side: _heads(one) for side, one in both.items()}
            roles += head_roles(pair, reporting, heads, task.name)
        on_step(f"{task.name}: transfer and roles")
    return Comparison(
        models=facts,
        discoveries=discoveries,
        examples={
            task.name: attention_examples(
                pair,
                task,
                {side: prompts[task.name][side] for side in SIDES},
                {side: discoveries[task.name][side] for side in SIDES},
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
            "device": str(models["dense"].W_E.device),
            "seconds": round(kept.seconds + time.perf_counter() - started, 1),
            "target": config.target,
            "method": config.method,
            "method_options": dict(config.method_options),
            "selection": config.selection,
            "ablation": config.ablation,
            "gates": config.gates,
            "prune": config.prune,
            "prompts": config.n_prompts,
            **({"kept_parts": len(kept.discoveries)} if kept.discoveries else {}),
        },
    )


def steps_of_compare(config: DiscoverConfig, n_tasks: int, n_others: int = 0) -> int:
    """Returns about how many times `compare` calls `on_step`."""
    return (2 + n_others) * (n_tasks * steps_of(config) + 1) + n_tasks


def check_model_names(names: Iterable[str]) -> None:
    """Refuses names of further models whose results could not be told apart in files' names.

    Raises:
        ValueError: a name is empty, that of one of the pair, or one with another as a file's name.
    """
    taken = {side: side for side in SIDES}
    for name in names:
        # Without dots, the parts of `task.model.granularity.json` can be told apart.
        other = taken.setdefault(file_name_of(name).replace(".", "_"), name)
        if not name or name in SIDES:
            raise ValueError(
                f"another model cannot be called {name!r}; {' and '.join(SIDES)} are the pair"
            )
        if other != name:
            raise ValueError(
                f"the models {other!r} and {name!r} would have the same files; give one of them "
                "another name"
            )


def _discover(
    side: str,
    model: Model,
    task: Task,
    config: DiscoverConfig,
    prompts: TaskPrompts,
    workers: Workers,
    on_step: Callable[[str], None],
) -> Discovery:
    def step(what: str) -> None:
        on_step(f"{side} {what}")

    try:
        return discover(model, task, config, prompts=prompts, workers=workers, on_step=step)
    except ValueError as error:
        raise ValueError(f"{side} model, task {task.name}: {error}") from error


def _named(
    dense: AnyModel, sparse: AnyModel, others: Mapping[str, AnyModel]
) -> dict[str, AnyModel]:
    check_model_names(others)
    return {"dense": dense, "sparse": sparse, **others}


def _labels(given: Mapping[str, AnyModel]) -> tuple[str, ...]:
    """The names and folders that the pair was given as; the side of what was given as a model."""
    return tuple(str(given[side]) if isinstance(given[side], str | Path) else side
                 for side in SIDES)  # fmt: skip


def _same_graph(pair: Mapping[str, Model]) -> bool:
    dense, sparse = (graph_of(model).mask.shape for model in pair.values())
    return dense == sparse


def _heads(found: Discovery) -> list[str]:
    """The heads of the circuit of heads, or of edges where no heads were looked for."""
    circuits = found.found
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
        others = [side for side in models if read_as[side] != read_as["dense"]]
        if others:
            raise ValueError(
                f"text is given as one model's tokens, but the tokenizers of dense and {others[0]} "
                f"differ; give it by model, as {{'dense': tokens, {others[0]!r}: tokens, ...}}"
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
            raise ValueError(f"{side} model, task {task.name}: {error}") from error
    return found


def _check_some_left(refused: Mapping[str, Mapping[str, str]]) -> None:
    reasons = {
        task: f"task {task}: {side} model: {why[side]}"
        for task, why in refused.items()
        for side in reversed(SIDES)
        if side in why
    }
    if len(reasons) == len(refused):
        raise CannotDoTask("nothing is left to compare; " + "; ".join(reasons.values()))


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
