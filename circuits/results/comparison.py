"""The comparison: what was found in the dense model next to what was found in the sparse one.

A `Comparison` is plain values, no models: it can be saved, loaded and drawn anywhere. Its tables
say whether the models are equally good (`models_table`) and how big their circuits are
(`summary_table`). Any number of other models may be compared with them, as controls or as further
twins: `others_table` compares the dense model with each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from circuits.results.circuit import Circuit
from circuits.results.discovery import Discovery
from circuits.results.intervals import seeds_interval
from circuits.results.notebook import table_html
from circuits.results.pair import attribution_ratio, note_of, overlap, size_ratio, sizes_row
from circuits.results.roles import HeadRole
from circuits.results.shape import circuit_shape
from circuits.results.stability import chance_jaccard
from circuits.results.transfer import Transfer

SIDES = ("dense", "sparse")
ONLY = "model"
"""What the model is called in a study of one."""


def sides_of(models: Iterable[str]) -> tuple[str, ...]:
    """Returns which of the models by name stand side by side: the pair, or the only one."""
    known = tuple(models)
    return known if known == (ONLY,) else SIDES


@dataclass(frozen=True)
class ModelFacts:
    """How good a model is on plain text, and how many of its attention edges are open.

    Attributes:
        name: The model's name or folder.
        ce: Cross-entropy on held-out text in nats per token; None if no text was given.
        density: Share of allowed attention edges that are open; 1 for a dense model.
        density_per_layer: The same for each layer.
        density_per_head: The same for each head of each layer.
        context: Tokens in each sequence that `ce` and `density` were measured on.
        n_parameters: Number of weights.
        tokenizer: Fingerprint of its tokenizer. Cross-entropies can be compared between models of
            the same one only.
        quantization: What its weights were quantised as before they were floats (`GGUF, Q4_1
            100%`); empty where they were not.
    """

    name: str
    ce: float | None
    density: float
    density_per_layer: tuple[float, ...]
    density_per_head: tuple[tuple[float, ...], ...]
    context: int
    n_parameters: int
    tokenizer: str = ""
    quantization: str = ""


@dataclass(frozen=True)
class AttentionExample:
    """One reporting prompt as each model reads it.

    Attributes:
        task: The task's name.
        template: The prompt's template.
        clean: Its tokens as text.
        corrupted: The corrupted twin's tokens.
        answer: The first right answer.
        patterns: Attention after the gate, on the clean prompt, per side:
            lists in lists, `layer head query key`.
    """

    task: str
    template: str
    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    answer: str
    patterns: dict[str, list[list[list[list[float]]]]]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Everything that the tables, figures and the report are made of.

    A study of one model is one too: `sides` has one entry, and what sets two models side by side is
    empty.

    Attributes:
        models: Facts about the dense and the sparse model ("dense", "sparse"), then the others; or
            about the only model ("model").
        discoveries: What was found, by task, then by model. Another model that does not do a
            task has no entry; a task that one of the pair does not do has none at all.
        examples: A few reporting prompts of each task, by task.
        transfers: Each of the pair's circuits, run in the other model.
        roles: What the heads of the pair attend to, by task.
        twins: Which of the others are sparse twins too, from other training seeds.
        refused: Why a model has no circuit, by task, then by model.
        run: How it was made: command, versions, seed, device, seconds.
    """

    models: dict[str, ModelFacts]
    discoveries: dict[str, dict[str, Discovery]]
    examples: dict[str, tuple[AttentionExample, ...]] = field(default_factory=dict)
    transfers: tuple[Transfer, ...] = ()
    roles: tuple[HeadRole, ...] = ()
    twins: tuple[str, ...] = ()
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[str, ...]:
        """The models that stand side by side: "dense" and "sparse", or the only "model"."""
        return sides_of(self.models)

    @property
    def is_pair(self) -> bool:
        """Whether two models are compared; else it is a study of one."""
        return len(self.sides) == 2

    def __repr__(self) -> str:
        tasks, models = ", ".join(self.discoveries), ", ".join(self.models)
        return f"Comparison(models: {models}; tasks: {tasks})"

    def _repr_html_(self) -> str:
        if not self.is_pair:
            (facts,) = self.models.values()
            return table_html(f"Circuits of {facts.name}", self.evidence_table())
        return table_html("Are the models equally good?", self.models_table()) + table_html(
            "Sizes of the circuits, dense / sparse", self.summary_table()
        )

    def _compared(self) -> dict[str, dict[str, Discovery]]:
        """The discoveries in which two models stand side by side."""
        return self.discoveries if self.is_pair else {}

    def models_table(self) -> pd.DataFrame:
        """Returns one row for each model and task: metric, accuracy, cross-entropy, density."""
        return pd.DataFrame(
            [
                {
                    "model": side,
                    "task": task,
                    "metric": discovery.metric_full,
                    "accuracy": discovery.accuracy,
                    "ce": self.models[side].ce,
                    "density": self.models[side].density,
                    "context": self.models[side].context,
                    "tokenizer": self.models[side].tokenizer,
                }
                for task, discoveries in self.discoveries.items()
                for side, discovery in discoveries.items()
            ]
        )

    def summary_table(self) -> pd.DataFrame:
        """Returns one row for each task and granularity: sizes, ratio with interval, faithfulness.

        `ratio` is dense over sparse: above 1, the sparse model's circuit is smaller. `p` is the
        p-value of equal sizes. `interval` says what both are drawn from, or why there is none;
        `note` where all halves have the same two sizes. The interval from `templates_low` to
        `templates_high` draws whole templates in place of prompts.
        Faithfulness is of `prompts` prompts: fresh ones where `measured_on` is "reporting", those
        that the circuits were found on where it is "sizing". A task that one of the pair does not
        do has one row without a granularity, and `note` says why.

        Where circuits were `pruned`, `minimal` says whether no single component can go; the columns
        `prefix_*` are of the sizes before. The columns `attribution_*` count without any
        intervention: how many components hold the target's share of all absolute attribution. A
        gate that is shut in both runs makes an attention edge score exactly 0, so this count
        favours gated models by construction.
        """
        rows = []
        for task, discoveries in self._compared().items():
            dense, sparse = (discoveries[side] for side in SIDES)
            for granularity in dense.circuits:
                rows.append({"task": task, **sizes_row(dense, sparse, granularity)})
        for task, reason in self.not_compared().items():
            rows.append({"task": task, "granularity": "", "note": reason})
        return pd.DataFrame(rows)

    def not_compared(self) -> dict[str, str]:
        """Returns the tasks that one of the models side by side does not do, and why."""
        return {
            task: "; ".join(
                f"{side} model: {reasons[side]}" if self.is_pair else reasons[side]
                for side in self.sides
                if side in reasons
            )
            for task, reasons in self.refused.items()
            if any(side in reasons for side in self.sides)
        }

    def of_other_tokenizer(self) -> list[str]:
        """Returns the models that read text as other tokens than the dense model."""
        own = self.models[self.sides[0]].tokenizer
        return [name for name, facts in self.models.items() if facts.tokenizer != own]

    def evidence_table(self) -> pd.DataFrame:
        """Returns one row for each task, granularity and model: what is given next to the size.

        The columns `edges_q`, `edges_k`, `edges_v`, `edges_mlp` and `edges_logits` give for a
        circuit of edges how many end in what; other rows have none.
        """
        return pd.DataFrame(
            [
                {
                    "task": task,
                    "granularity": granularity,
                    "model": side,
                    "size": evidence.size,
                    "size_low": evidence.size_low,
                    "size_high": evidence.size_high,
                    "interval": evidence.interval,
                    "note": note_of(evidence),
                    "prefix": evidence.prefix_size,
                    "prefix_low": evidence.prefix_low,
                    "prefix_high": evidence.prefix_high,
                    "minimal": evidence.is_minimal,
                    "components": evidence.n_components,
                    "holding_attribution": evidence.n_attribution,
                    "faithfulness": evidence.faithfulness,
                    "faithfulness_low": evidence.faithfulness_low,
                    "faithfulness_high": evidence.faithfulness_high,
                    "faithfulness_interval": evidence.faithfulness_interval,
                    "measured_on": evidence.measured_on,
                    "prompts": evidence.n_measured,
                    "faithfulness_sizing": evidence.faithfulness_sizing,
                    "without_last": evidence.faithfulness_without_last,
                    "rest": evidence.faithfulness_of_rest,
                    "random_same_size": evidence.random_same_size,
                    "cpr": evidence.cpr,
                    "cmd": evidence.cmd,
                    **(_edge_counts(evidence.circuit) if granularity == "edge" else {}),
                }
                for task, discoveries in self.discoveries.items()
                for side, discovery in discoveries.items()
                for granularity, evidence in discovery.circuits.items()
            ]
        )

    def stability_table(self) -> pd.DataFrame:
        """Returns one row for each task, granularity and model: whether halves find the same.

        `jaccard` is the mean over pairs of halves of the ranking and sizing prompts, `by_chance`
        about what random circuits of the same sizes would have. Attention edges are of single
        prompts and have no row.
        """
        columns = ["task", "granularity", "model", "halves", "jaccard", "by_chance"]
        rows = [
            {
                "task": task,
                "granularity": granularity,
                "model": side,
                "halves": kept.n,
                "jaccard": kept.jaccard,
                "by_chance": chance_jaccard(one.redrawn_sizes, one.n_components),
                "in_all": kept.n_in(granularity, one.circuit, 1.0),
                "in_half": kept.n_in(granularity, one.circuit, 0.5),
                "in_any": kept.n_in(granularity, one.circuit, 1 / kept.n),
            }
            for task, found in self.discoveries.items()
            for side, discovery in found.items()
            for granularity, one in discovery.circuits.items()
            if (kept := one.stability) is not None
        ]
        return pd.DataFrame(rows, columns=[*columns, "in_all", "in_half", "in_any"])

    def others_table(self) -> pd.DataFrame:
        """Returns one row for each task, granularity and model but the dense one.

        `ratio` is the dense model's size over this model's. A model that does not do the task has
        no size, and `note` says why.
        """
        rows = []
        for task, discoveries in self._compared().items():
            for granularity, dense in discoveries["dense"].circuits.items():
                for name, facts in self.models.items():
                    if name == "dense":
                        continue
                    row = {"task": task, "granularity": granularity, "model": name}
                    row |= {"ce": facts.ce, "density": facts.density}
                    if name in discoveries:
                        evidence = discoveries[name].circuits[granularity]
                        ratio, low, high = size_ratio(dense, evidence)
                        row |= {"accuracy": discoveries[name].accuracy, "dense": dense.size}
                        row |= {"size": evidence.size, "ratio": ratio, "ratio_low": low}
                        row |= {"ratio_high": high, "note": ""}
                        row |= {"attribution": evidence.n_attribution}
                        row |= {"attribution_ratio": attribution_ratio(dense, evidence)}
                    else:
                        row["note"] = self.refused[task][name]
                    rows.append(row)
        columns = ("task", "granularity", "model", "accuracy", "ce", "density", "dense", "size")
        columns += ("ratio", "ratio_low", "ratio_high", "attribution", "attribution_ratio", "note")
        return pd.DataFrame(rows, columns=list(columns))

    def seeds_table(self) -> pd.DataFrame:
        """Returns one row for each task and granularity: the ratio over training seeds.

        `ratio` is the geometric mean of dense over sparse, over the sparse model and its twins that
        do the task; `seeds` of them. The interval is over post-training seeds alone: the dense
        model and the prompts are the same. Empty without twins.
        """
        rows = []
        for task, discoveries in self.discoveries.items() if self.twins else ():
            sparse = [discoveries[name] for name in ("sparse", *self.twins) if name in discoveries]
            for granularity, dense in discoveries["dense"].circuits.items():
                ratios = [
                    size_ratio(dense, discovery.circuits[granularity])[0] for discovery in sparse
                ]
                mean, low, high = seeds_interval(ratios)
                row = {"task": task, "granularity": granularity, "seeds": len(ratios)}
                row |= {"ratio": mean, "ratio_low": low, "ratio_high": high}
                row |= {"smallest": min(ratios), "largest": max(ratios)}
                counts = [
                    attribution_ratio(dense, discovery.circuits[granularity])
                    for discovery in sparse
                ]
                mean, low, high = seeds_interval(counts)
                row |= {"attribution_ratio": mean, "attribution_ratio_low": low}
                rows.append(row | {"attribution_ratio_high": high})
        columns = ("task", "granularity", "seeds", "ratio", "ratio_low", "ratio_high", "smallest")
        columns += ("largest", "attribution_ratio", "attribution_ratio_low")
        return pd.DataFrame(rows, columns=[*columns, "attribution_ratio_high"])

    def transfer_table(self) -> pd.DataFrame:
        """Returns one row for each circuit that was run in the other model."""
        return pd.DataFrame(
            [asdict(transfer) for transfer in self.transfers],
            columns=[part.name for part in fields(Transfer)],
        )

    def roles_table(self) -> pd.DataFrame:
        """Returns one row for each task, model and head: what it attends to, and its role."""
        columns = [part.name for part in fields(HeadRole)]
        if not self.is_pair:
            columns = [name for name in columns if name not in ("twin", "similarity")]
        return pd.DataFrame([asdict(role) for role in self.roles], columns=columns)

    def overlap_table(self) -> pd.DataFrame:
        """Returns one row for each task and granularity: Jaccard overlap of the two circuits.

        Heads, MLPs and edges are matched by name; attention edges by layer, head and positions,
        which mean the same in both models only if one tokenizer reads for both: else attention
        edges have no row.
        """
        rows = []
        same_positions = "sparse" not in self.of_other_tokenizer()
        for task, discoveries in self._compared().items():
            for granularity in discoveries["dense"].circuits:
                if granularity == "attention_edge" and not same_positions:
                    continue
                dense, sparse = (discoveries[side].circuits[granularity].circuit for side in SIDES)
                shared = overlap(dense, sparse)
                rows.append({"task": task, "granularity": granularity, **shared})
        return pd.DataFrame(rows)

    def structure_table(self) -> pd.DataFrame:
        """Returns one row for each task and model: the shape of the circuit of edges."""
        return pd.DataFrame(
            [
                {"task": task, "model": side, **circuit_shape(discovery.circuits["edge"].circuit)}
                for task, discoveries in self.discoveries.items()
                for side, discovery in discoveries.items()
                if "edge" in discovery.circuits
            ]
        )


def _edge_counts(circuit: Circuit) -> dict[str, int]:
    return {f"edges_{kind}": count for kind, count in circuit.edges_by_kind().items()}
