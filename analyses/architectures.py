"""What works for each architecture that the installed TransformerLens lists, and why not.

    python analyses/architectures.py --out docs/architectures.csv

Each architecture that transformers has a causal language model of is made small (two layers, 32
numbers a token) from its own default config, with random weights, and put through what the package
does with a model; a failure is caught, and its reason kept, with the name of the library that it
comes from if that is another one. Rows of another TransformerLens that
are in the file already stay there, so running this once with each major version makes the table of
docs/models.md. It takes some minutes on one core.

How scores are judged: what components write ablated is moved to a small fraction of the way from
clean, both forwards and backwards. There a metric is linear in it, so half the difference of two
real interventions must be what attribution says, whatever the architecture. The fraction is so
small, and the model in double precision, because a router that chooses other experts for a token
makes a step, which no gradient sees; a larger one is tried where that fails, since models that
compute their norms in single precision, whatever their own, drown so small a change in rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.progress import track
from tiny_models import prompts_for, tiny_model, tokens
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformers import logging as transformers_log
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuits.attribute import (
    attribution_patching,
    exact_attention_edge_effects,
    exact_edge_effects,
)
from circuits.files import write_text
from circuits.gate.density import measure_density
from circuits.gate.gate import add_gate, is_gated
from circuits.intervene.ablate import run_attention_edges, run_edges
from circuits.intervene.activations import Activations
from circuits.intervene.behind_heads import attention_out
from circuits.intervene.experiment import Experiment, prepare_experiment
from circuits.models.backend import Model
from circuits.models.load import copy_model, from_hf, load_model, versions
from circuits.models.saving import frozen_parameters, save_model

STEPS = (1e-3, 1e-2)
"""How far ablated activations go from the clean ones, of the whole way: one must agree."""
TOLERANCE = 0.01
"""How far a score may be from the interventions', of the largest score."""
N_CHECKED = 24
"""How many edges, and attention edges, are tried by intervening; drawn at random."""
LONGEST = 160
"""How many characters of a reason are kept."""
CHECKS = ("runs", "gate", "edges", "attention_edges", "trains", "saved")


@dataclass(frozen=True)
class Tried:
    """A model in the hands of the checks.

    Attributes:
        hf_model: The Hugging Face model.
        model: The dense hooked model of the same weights.
    """

    hf_model: Any
    model: Model


# ---- the checks: each returns if all is well, and raises with the reason if it is not -----------


def runs(hf_model: Any) -> Model:
    """Loads the model; its logits must be those of transformers."""
    given = tokens(pos=20)
    with torch.no_grad():
        expected = hf_model(given).logits
        model = from_hf(copy.deepcopy(hf_model), None, name="tiny")
        _alike(model(given), expected, "logits are not those of transformers", 1e-4)
    return model


def gate(tried: Tried) -> None:
    """A gate shuts some attention, all that is computed goes by it, and open it changes nothing."""
    model, given = copy_model(tried.model), tokens()
    with torch.no_grad():
        dense = model(given)
        gated = add_gate(copy_model(model))
        density = measure_density(gated, given).overall
        if not 0 < density < 1:
            raise ValueError(f"the gate leaves {density:.0%} of attention open")
        logits: Any
        logits, cache = gated.run_with_cache(given)
        for layer in range(model.cfg.n_layers):
            at = f"blocks.{layer}.attn.hook_"
            pattern, value = cache[f"{at}pattern"], cache[f"{at}v"]
            if (pattern * (1 - cache[f"{at}gate"])).any():
                raise ValueError("attention flows where the gate is shut")
            if value.shape[1] != pattern.shape[-1]:  # those made of one latent vector: heads first
                value = value.transpose(1, 2)
            value = value.repeat_interleave(pattern.shape[1] // value.shape[2], dim=2)
            z = torch.einsum("bhqk,bkhe->bqhe", pattern, value)
            _alike(cache[f"{at}z"].reshape(z.shape), z, "heads do not read by the gated pattern")
        if torch.allclose(logits, dense, atol=1e-5):
            raise ValueError("logits do not depend on the gate")
        _alike(add_gate(model, bias=1e4)(given), dense, "all gates open is not the dense model")


def edges(tried: Tried) -> None:
    """Scores of edges are what interventions find, and circuits of all and of no edges run."""
    experiment = _experiment(tried)
    mask = experiment.graph.mask
    _alike(
        run_edges(experiment, mask), experiment.full, "the circuit of all edges is not the model"
    )
    nothing = run_edges(experiment, torch.zeros_like(mask))
    _alike(nothing, experiment.empty, "the circuit of no edges is not the ablated run")
    some = _some(mask.nonzero())
    places = [tuple(edge) for edge in some.tolist()]

    def scored(moved: Experiment) -> tuple[Tensor, Tensor]:
        scores = attribution_patching(moved, attention_edges=False).edges
        return torch.stack([scores[place] for place in places]), exact_edge_effects(moved, places)

    _same_slopes(experiment, scored, "scores of edges are not what interventions find")


def attention_edges(tried: Tried) -> None:
    """Scores of attention edges are what interventions find."""
    experiment = _experiment(tried)
    batch, pos = experiment.prompts.clean.shape
    cfg = experiment.model.cfg
    every = torch.ones((batch, cfg.n_layers, cfg.n_heads, pos, pos), dtype=torch.bool)
    whole = run_attention_edges(experiment, every)
    _alike(whole, experiment.full, "the circuit of all attention edges is not the model")
    some = _some(every[0].tril().nonzero())

    def scored(moved: Experiment) -> tuple[Tensor, Tensor]:
        scores = attribution_patching(moved).attention_edges["all"]
        return scores[some.unbind(1)], exact_attention_edge_effects(moved, some)

    _same_slopes(experiment, scored, "scores of attention edges are not what interventions find")


def trains(tried: Tried) -> Model:
    """A step of a gated model moves every layer's queries and lowers the loss."""
    model = add_gate(copy_model(tried.model))
    frozen = frozen_parameters(model)
    moving = {name: w for name, w in model.named_parameters() if name not in frozen}
    before = {name: weight.detach().clone() for name, weight in moving.items()}
    optimizer = torch.optim.AdamW(moving.values(), lr=1e-3)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in moving)
    given = tokens()
    loss = model.train()(given, return_type="loss")
    loss.backward()
    optimizer.step()
    model.eval()
    if not torch.isfinite(loss):
        raise ValueError("the loss is not a number")
    if all(torch.equal(moving[name], before[name]) for name in moving):
        raise ValueError("a step of training moves no weight")
    return model


def saved(model: Model, where: str) -> None:
    """Files give back the model, and its gate if it has one."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / where)
        again = load_model(Path(folder) / where)
        if is_gated(again) != is_gated(model):
            raise ValueError("the gate is not saved")
        with torch.no_grad():
            _alike(again(tokens()), model(tokens()), "what is loaded again is another model", 1e-5)


def _experiment(tried: Tried) -> Experiment:
    # A model that is refused is refused as it is, before its precision is changed.
    prepare_experiment(tried.model, prompts_for(tried.model), metric="logit_diff")
    model: Any = copy_model(tried.model)
    with contextlib.redirect_stdout(io.StringIO()):  # where TransformerLens says what it changes
        model.to(torch.float64)
    return prepare_experiment(model, prompts_for(model), metric="logit_diff")


def _same_slopes(
    experiment: Experiment, scored: Callable[[Experiment], tuple[Tensor, Tensor]], what: str
) -> None:
    """Compares what `scored` says, by attribution and by interventions, on small changes."""
    clean = _clean(experiment)
    failed: ValueError | None = None
    for size in STEPS:
        ahead, back = (
            scored(replace(experiment, ablated=_between(experiment, clean, step)))
            for step in (size, -size)
        )
        found, expected = (one - other for one, other in zip(ahead, back, strict=True))
        if not expected.abs().max() > 0:
            raise ValueError("no edge that was tried matters")
        try:
            _alike(found, expected, what, TOLERANCE)
        except ValueError as error:
            failed = error
        else:
            return
    if failed is not None:
        raise failed


def _clean(experiment: Experiment) -> Activations:
    swapped = replace(experiment.prompts, corrupted=experiment.prompts.clean)
    return prepare_experiment(experiment.model, swapped, metric=experiment.metric).ablated


@torch.no_grad()
def _between(experiment: Experiment, clean: Activations, step: float) -> Activations:
    """Activations part of the way from clean to ablated; of attention, its patterns and values."""
    ablated, model = experiment.ablated, experiment.model

    def moved(one: Any, other: Any) -> Any:
        if one is None:  # keys, where the model cannot go on from them
            return None
        if isinstance(one, Tensor):
            return one + step * (other - one)
        fields = {name: moved(getattr(one, name), getattr(other, name)) for name in vars(one)}
        return replace(one, **fields)

    found = moved(clean, ablated)
    stream = found.embed  # The stream anew from its parts, of which norms make no straight line.
    for layer in range(model.cfg.n_layers):
        found.resid_pre[layer] = stream
        stream = stream + attention_out(model, layer, found.z[layer])
        if experiment.graph.has_mlps and not experiment.graph.parallel_attn_mlp:
            found.resid_mid[layer] = stream
        stream = stream + found.mlp_out[layer]
    return replace(found, resid_final=stream)


def _some(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:N_CHECKED]]


def _alike(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Refuses a tensor that differs by more than a fraction of the largest number expected."""
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not error <= tolerance:
        raise ValueError(f"{what} (they differ by {error:.1g} of the largest)")


# ---- the table ----------------------------------------------------------------------------------


def row_of(architecture: str) -> dict[str, str]:
    """Returns for one architecture "yes", or the reason why not, of each check."""
    row = {"architecture": architecture, **dict.fromkeys(CHECKS, "")}
    kinds = [
        k for k, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if architecture in _names(name)
    ]
    kinds = [kind for kind in kinds if kind in CONFIG_MAPPING]
    if not kinds:
        return row | {"runs": "transformers has no causal language model of this name"}
    kind = next(
        (k for k in kinds if architecture.lower().startswith(k.replace("_", ""))), kinds[-1]
    )
    model: Any = None

    def attempt(check: str, act: Callable[[], Any]) -> Any:
        try:
            found = act()
        except Exception as error:  # any library may raise anything here; the reason is kept
            row[check] = _reason(error)
            return None
        row[check] = "yes"
        return found

    hf_model = attempt("runs", partial(tiny_model, kind))
    if hf_model is not None:
        model = attempt("runs", partial(runs, hf_model))
    if model is None:
        return row
    tried = Tried(hf_model, model)
    for check in (gate, edges, attention_edges):
        attempt(check.__name__, partial(check, tried))
    trained = attempt("trains", partial(trains, tried)) if row["gate"] == "yes" else None
    row["trains"] = row["trains"] or "takes no gate"
    attempt("saved", partial(saved, model if trained is None else trained, "model"))
    return row


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _reason(error: Exception) -> str:
    """The first sentence of an error, whose it is, and nothing of the paths and names of a run."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    text = " ".join(str(error).split()).replace("config.json: ", "")
    text = re.sub(r"'?/\S+/", "", text.partition("; ")[0])
    whole = _owner(error) + kind + text.removeprefix("tiny ").removeprefix("tiny: ")
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST].rpartition(' ')[0]} ..."


def _owner(error: Exception) -> str:
    """The library whose code an error was last in, if it is another than this one, as a prefix."""
    files = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
    for parts in reversed(files):
        for library in ("transformers", "transformer_lens"):
            if library in parts:
                return f"{library}: "
        if "circuits" in parts or parts[-1] == Path(__file__).name:
            return ""
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = transformers_log.get_verbosity()
    transformers_log.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers_log.set_verbosity(level)


def main() -> None:
    """Reads the arguments, tries each architecture and writes the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the table, a CSV file")
    parser.add_argument("--only", nargs="*", help="names of architectures, in place of all")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    wanted = options.only or sorted(SUPPORTED_ARCHITECTURES)
    found = versions()
    lens = {name: found[name] for name in ("transformer_lens", "transformers")}
    with _quiet():
        rows = [lens | row_of(name) for name in track(wanted, "architectures")]
    table = pd.DataFrame(rows)
    if options.out.is_file():
        kept = pd.read_csv(options.out, dtype=str, keep_default_na=False)
        others = kept["transformer_lens"] != lens["transformer_lens"]
        kept = kept.loc[others | ~kept["architecture"].isin(wanted)]
        table = pd.concat([kept, table]).sort_values(["transformer_lens", "architecture"])
    write_text(options.out, table.to_csv(index=False))
    print(table[list(CHECKS)].eq("yes").sum().to_string())


if __name__ == "__main__":
    main()
