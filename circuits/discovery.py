"""What discovery returns: circuits with their evidence, as plain values that can be saved.

`DiscoverConfig` says how circuits are looked for, `Found` is the circuit of one granularity with
what is known about it, `Discovery` holds all granularities of one model and one task.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from circuits.activations import Ablation
from circuits.attribute import GRANULARITIES, METHODS, Granularity
from circuits.circuit import Circuit
from circuits.files import write_json
from circuits.notebook import table_html
from circuits.seeds import check_seed
from circuits.select import SELECTIONS, Selection


@dataclass(frozen=True)
class DiscoverConfig:
    """How circuits are looked for.

    Attributes:
        target: The faithfulness that a circuit must reach.
        granularities: The kinds of component to choose among.
        method: A name in `circuits.attribute.METHODS`.
        selection: How scores order components: `absolute`, `signed` or `greedy`.
        ablation: What components outside the circuit write.
        n_prompts: Size of the ranking set, and of the held-out set.
        seed: Seed of prompts, random circuits and resamples.
    """

    target: float = 0.9
    granularities: tuple[Granularity | str, ...] = GRANULARITIES
    method: str = "attribution_patching"
    selection: Selection | str = "absolute"
    ablation: Ablation | str = "corrupted"
    n_prompts: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ValueError(f"the target must be above 0 and at most 1, got {self.target}")
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; choose one of {', '.join(METHODS)}")
        if self.selection not in SELECTIONS:
            raise ValueError(
                f"unknown selection {self.selection!r}; choose one of {', '.join(SELECTIONS)}"
            )
        if self.ablation not in get_args(Ablation):
            raise ValueError(
                f"unknown ablation {self.ablation!r}; choose one of {', '.join(get_args(Ablation))}"
            )
        unknown = [name for name in self.granularities if name not in GRANULARITIES]
        if unknown or not self.granularities:
            what = f"unknown granularity {unknown[0]!r}" if unknown else "no granularity given"
            raise ValueError(f"{what}; choose among {', '.join(GRANULARITIES)}")
        if self.n_prompts < 2:
            raise ValueError(f"at least 2 prompts are needed, got {self.n_prompts}")
        check_seed(self.seed)


@dataclass(frozen=True)
class Found:
    """The circuit found at one granularity, with its evidence.

    Attributes:
        circuit: The circuit.
        size: Its number of components (attention edges: mean over templates).
        n_components: How many components there are to choose from.
        faithfulness: Its faithfulness on the held-out prompts.
        faithfulness_without_last: The same without the component added last; below the target.
        faithfulness_of_rest: The same of all components outside the circuit: what the circuit
            leaves out. Near 0 if the circuit is complete (Wang et al. 2022, section 4.2).
        size_low: Lower end of the size's 95 % interval over prompts.
        size_high: Upper end.
        resampled_sizes: The size in each bootstrap resample, for paired ratios.
        resampled_templates: The size in each resample of whole templates; empty if there is one.
        template_sizes: The size that each template alone would need, along the same ranking.
        n_attribution: Components that hold the target's share of all absolute attribution.
        random_faithfulness: Faithfulness of random circuits of as many components.
        curve_sizes: Sizes tried, smallest first.
        curve_faithfulness: Faithfulness at each.
        curve_low: Lower end of the faithfulness's 95 % interval at each.
        curve_high: Upper end.
        cpr: Area under the faithfulness curve over the share of components (MIB).
        cmd: Area between the faithfulness curve and 1 (MIB).
    """

    circuit: Circuit
    size: float
    n_components: float
    faithfulness: float
    faithfulness_without_last: float | None
    faithfulness_of_rest: float
    size_low: float
    size_high: float
    resampled_sizes: tuple[float, ...]
    resampled_templates: tuple[float, ...]
    template_sizes: dict[str, float]
    n_attribution: float
    random_faithfulness: tuple[float, ...]
    curve_sizes: tuple[float, ...]
    curve_faithfulness: tuple[float, ...]
    curve_low: tuple[float, ...]
    curve_high: tuple[float, ...]
    cpr: float
    cmd: float

    @property
    def random_same_size(self) -> float:
        """Mean faithfulness of the random circuits."""
        return sum(self.random_faithfulness) / len(self.random_faithfulness)

    def to_json(self) -> dict[str, Any]:
        """Returns the evidence as plain values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"circuit": self.circuit.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Found:
        """Returns the evidence that `to_json` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        values["circuit"] = Circuit.from_json(content["circuit"])
        return cls(**values)


@dataclass(frozen=True)
class Discovery:
    """What was found in one model for one task.

    Attributes:
        task: The task's name.
        metric: The metric's name.
        metric_full: The metric of the whole model on held-out prompts, mean.
        metric_empty: The metric with everything ablated, mean.
        accuracy: Share of held-out prompts whose most likely token is a right answer.
        n_heldout: Number of held-out prompts.
        config: How it was looked for.
        found: The circuit of each granularity.
    """

    task: str
    metric: str
    metric_full: float
    metric_empty: float
    accuracy: float
    n_heldout: int
    config: DiscoverConfig
    found: dict[str, Found]

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row for each granularity: size with interval, faithfulness, baselines.

        `rest` is the faithfulness of all components outside the circuit, `random_same_size` that
        of random circuits, on the mean.
        """
        return pd.DataFrame(
            [
                {
                    "granularity": granularity,
                    "size": one.size,
                    "size_low": one.size_low,
                    "size_high": one.size_high,
                    "components": one.n_components,
                    "faithfulness": one.faithfulness,
                    "rest": one.faithfulness_of_rest,
                    "random_same_size": one.random_same_size,
                }
                for granularity, one in self.found.items()
            ]
        )

    def _repr_html_(self) -> str:
        caption = (
            f"{self.task}: {self.metric} {self.metric_full:.3f} (ablated {self.metric_empty:.3f}), "
            f"accuracy {self.accuracy:.1%} on {self.n_heldout} held-out prompts; target "
            f"{self.config.target:.0%}"
        )
        return table_html(caption, self.to_dataframe())

    def to_json(self) -> dict[str, Any]:
        """Returns the discovery as plain values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["config"] = asdict(self.config)
        plain["found"] = {name: one.to_json() for name, one in self.found.items()}
        return plain

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Discovery:
        """Returns the discovery that `to_json` wrote."""
        config = dict(content["config"])
        config["granularities"] = tuple(config["granularities"])
        found = {name: Found.from_json(one) for name, one in content["found"].items()}
        return cls(**content | {"config": DiscoverConfig(**config), "found": found})

    def save(self, path: str | Path) -> None:
        """Writes the discovery as JSON, beside and renamed."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Discovery:
        """Returns the discovery in a file.

        Raises:
            ValueError: the file is none.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no saved discovery ({type(error).__name__}: {error}); "
                "make one with `circuits discover`"
            ) from error
