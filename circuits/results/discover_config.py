"""How circuits are looked for, as one value that checks itself and loads no library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from circuits.choices import (
    ABLATIONS,
    ATTRIBUTION_METHODS,
    GATES,
    GRANULARITIES,
    METHOD_ALIASES,
    SELECTIONS,
    Ablation,
    Gates,
    Granularity,
    Selection,
    check_choice,
    spelled,
)
from circuits.seeds import check_seed
from circuits.settings import described, setting

SEARCH = "How circuits are looked for"


def _among(choices: Mapping[Any, str]) -> str:
    return ", ".join(choices)


@described
@dataclass(frozen=True)
class DiscoverConfig:
    """How circuits are looked for."""

    target: float = setting(0.9, SEARCH, "Faithfulness that a circuit must reach, 0 to 1.")
    granularities: tuple[Granularity | str, ...] | str = setting(
        tuple(GRANULARITIES),
        SEARCH,
        f"The kinds of component to choose among: {_among(GRANULARITIES)}.",
        option="--granularity",
    )
    method: str = setting(
        "attribution_patching",
        SEARCH,
        f"How components are scored: {_among(ATTRIBUTION_METHODS)}; also eap and eap-ig.",
    )
    method_options: Mapping[str, Any] = setting(
        {},
        SEARCH,
        "Options of the method by name, such as steps=10 for integrated gradients.",
        option="--method-option",
    )
    selection: Selection | str = setting(
        "absolute", SEARCH, f"How scores order components: {_among(SELECTIONS)}."
    )
    ablation: Ablation | str = setting(
        "corrupted", SEARCH, f"What components outside the circuit write: {_among(ABLATIONS)}."
    )
    gates: Gates | str = setting(
        "follow",
        SEARCH,
        f"What a sparse model's gates do while a circuit runs: {_among(GATES)} (held at their "
        "values in the clean run). A dense model has none.",
    )
    n_prompts: int = setting(
        100,
        SEARCH,
        "Prompts in each of three sets: to rank on, to size on and to report on.",
        option="--prompts",
    )
    seed: int = setting(0, SEARCH, "Seed of prompts, random circuits and resamples.")
    redraws: int = setting(
        8,
        SEARCH,
        "How often circuits are found again, each time on random halves of the prompts to rank and "
        "to size on, for the intervals of sizes; 0: no intervals.",
    )
    prune: bool = setting(
        False,
        SEARCH,
        "Take out of each circuit what can go, until no single component can.",
    )
    prune_margin: float = setting(
        0.0,
        SEARCH,
        "By how many standard errors over the sizing prompts a pruned circuit must be above the "
        "target: 1 keeps a little more, which then holds better on fresh prompts.",
    )

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ValueError(f"the target must be above 0 and at most 1, got {self.target}")
        given = self.granularities
        several = (given,) if isinstance(given, str) else given
        names = dict.fromkeys(spelled(name, GRANULARITIES) for name in several)
        object.__setattr__(self, "granularities", tuple(names))
        method = spelled(self.method, ATTRIBUTION_METHODS, METHOD_ALIASES)
        object.__setattr__(self, "method", method)
        check_choice("method", self.method, ATTRIBUTION_METHODS)
        check_choice("selection", self.selection, SELECTIONS)
        check_choice("ablation", self.ablation, ABLATIONS)
        check_choice("gates", self.gates, GATES)
        if not self.granularities:
            raise ValueError(f"no granularity given; choose among {', '.join(GRANULARITIES)}")
        for granularity in self.granularities:
            check_choice("granularity", granularity, GRANULARITIES)
        if self.n_prompts < 2:
            raise ValueError(f"at least 2 prompts are needed, got {self.n_prompts}")
        if self.redraws < 0 or self.redraws == 1:
            raise ValueError(
                f"redraws must be 0 (no intervals) or at least 2, got {self.redraws}; 8 is usual"
            )
        if not 0 <= self.prune_margin < math.inf:
            raise ValueError(f"prune_margin must be 0 or more, got {self.prune_margin}")
        if self.prune_margin and not self.prune:
            raise ValueError("prune_margin is for circuits that are pruned; set prune as well")
        check_seed(self.seed)
