"""Two circuits of one behaviour: how many times as big one is as the other, with intervals."""

from __future__ import annotations

from circuits.results.discovery import Evidence
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
