"""Two circuits of one behaviour: how many times as big one is as the other, what they share."""

from __future__ import annotations

import math
from typing import Any

from circuits.results.circuit import Circuit
from circuits.results.discovery import Discovery, Evidence
from circuits.results.intervals import (
    p_value,
    percentile_ratio_interval,
    ratio_interval,
    ratio_of,
)


def size_ratio(dense: Evidence, sparse: Evidence) -> tuple[float, float, float]:
    """Returns dense size over sparse size, and its 95 % interval over shared halves of prompts."""
    return ratio_interval(dense.size, sparse.size, dense.redrawn_sizes, sparse.redrawn_sizes)


def size_p_value(dense: Evidence, sparse: Evidence) -> float:
    """Returns the p-value of equal sizes that fits this interval."""
    return p_value(dense.size, sparse.size, dense.redrawn_sizes, sparse.redrawn_sizes)


def prefix_size_ratio(dense: Evidence, sparse: Evidence) -> tuple[float, float, float]:
    """Returns the ratio and the interval of the sizes before pruning."""
    return ratio_interval(
        dense.prefix_size, sparse.prefix_size, dense.redrawn_prefixes, sparse.redrawn_prefixes
    )


def attribution_ratio(dense: Evidence, sparse: Evidence) -> float:
    """Returns how many times as many components hold the attribution in the dense model."""
    return ratio_of(dense.n_attribution, sparse.n_attribution)


def template_ratio_interval(dense: Evidence, sparse: Evidence) -> tuple[float, float]:
    """Returns the 95 % interval of dense size over sparse size, over resamples of templates."""
    return percentile_ratio_interval(dense.resampled_templates, sparse.resampled_templates)


def sizes_row(dense: Discovery, sparse: Discovery, granularity: str) -> dict[str, Any]:
    """Returns the row of `Comparison.summary_table` for the two circuits of a granularity."""
    pair = (dense.circuits[granularity], sparse.circuits[granularity])
    ratio, low, high = size_ratio(*pair)
    prefix_ratio, prefix_low, prefix_high = prefix_size_ratio(*pair)
    templates_low, templates_high = template_ratio_interval(*pair)
    return {
        "granularity": granularity,
        "dense": pair[0].size,
        "sparse": pair[1].size,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "p": size_p_value(*pair),
        "interval": pair[0].interval,
        "note": note_of(*pair),
        "templates_low": templates_low,
        "templates_high": templates_high,
        "faithfulness_dense": pair[0].faithfulness,
        "faithfulness_dense_low": pair[0].faithfulness_low,
        "faithfulness_dense_high": pair[0].faithfulness_high,
        "faithfulness_sparse": pair[1].faithfulness,
        "faithfulness_sparse_low": pair[1].faithfulness_low,
        "faithfulness_sparse_high": pair[1].faithfulness_high,
        "target": dense.config.target,
        "measured_on": pair[0].measured_on,
        "prompts": pair[0].n_measured,
        "pruned": dense.config.prune,
        "minimal": _all_minimal(*pair),
        "prefix_dense": pair[0].prefix_size,
        "prefix_sparse": pair[1].prefix_size,
        "prefix_ratio": prefix_ratio,
        "prefix_ratio_low": prefix_low,
        "prefix_ratio_high": prefix_high,
        "attribution_dense": pair[0].n_attribution,
        "attribution_sparse": pair[1].n_attribution,
        "attribution_ratio": attribution_ratio(*pair),
    }


def overlap(dense: Circuit, sparse: Circuit) -> dict[str, float]:
    """Returns how many components two circuits share, and their Jaccard index."""
    of_dense, of_sparse = _members(dense), _members(sparse)
    union = of_dense | of_sparse
    return {
        "shared": len(of_dense & of_sparse),
        "only_dense": len(of_dense - of_sparse),
        "only_sparse": len(of_sparse - of_dense),
        "jaccard": len(of_dense & of_sparse) / len(union) if union else math.nan,
    }


def note_of(*circuits: Evidence) -> str:
    """Returns what an interval of zero width means: sizes are whole numbers, not certain ones."""
    if not all(evidence.is_in_every_half for evidence in circuits):
        return ""
    return "all halves have this size" if len(circuits) == 1 else "all halves have these sizes"


def _all_minimal(*circuits: Evidence) -> bool | None:
    """Whether no single component can go from any of them; None where they were not pruned."""
    if any(evidence.is_minimal is None for evidence in circuits):
        return None
    return all(evidence.is_minimal for evidence in circuits)


def _members(circuit: Circuit) -> set[object]:
    """The components of the circuit's granularity, as things that two circuits can share."""
    if circuit.granularity == "attention_edge":
        return {
            (template, edge.layer, edge.head, edge.query, edge.key)
            for template, chosen in circuit.attention_edges.items()
            for edge in chosen
        }
    names = {"head": circuit.heads, "mlp": circuit.mlps, "edge": circuit.edge_names}
    return set(names[circuit.granularity])
