"""What discovery returns: circuits with their evidence, as plain values that can be saved.

`Evidence` is the circuit of one granularity with what is known about it, `Discovery` holds all
granularities of one model and one task. How they were looked for is a `DiscoverConfig`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from circuits.files import write_json
from circuits.numbers import percent, sized
from circuits.results.circuit import Circuit
from circuits.results.discover_config import DiscoverConfig
from circuits.results.notebook import table_html
from circuits.results.packed import pack_circuit, unpack_circuit
from circuits.results.stability import Stability

FORMAT = 6
"""Of saved discoveries and comparisons; a file of another format was written by another version."""
READ = (4, 5, FORMAT)
"""The formats that are read: up to 5 circuits were not packed, and 4 lacks `Evidence.stability`."""

RESULTS_FILE = "comparison.json"
"""What a folder of results holds its discoveries in."""

_BOUNDS = (
    *("size_low", "size_high", "faithfulness_low", "faithfulness_high"),
    *("prefix_low", "prefix_high", "curve_low", "curve_high"),
)
"""The ends of intervals, which few prompts do not have: NaN, which JSON has no place for."""

MeasuredOn = Literal["reporting", "sizing"]
"""The prompts that show what a circuit does: fresh ones, or those that its size was chosen on."""


@dataclass(frozen=True, repr=False)
class Evidence:
    """The circuit found at one granularity, with its evidence.

    Attributes:
        circuit: The circuit.
        size: Its number of components (attention edges: mean over templates), after pruning if
            there was any.
        size_low: Lower end of the size's 95 % interval over ranking and sizing prompts; NaN without
            one (`circuits.results.intervals.spread_interval`).
        size_high: Upper end.
        interval: What was drawn for the intervals of sizes, or "none: " and why.
        prefix_size: The size before pruning: the smallest along the ranking from which every
            larger size tried reaches the target on the sizing prompts.
        prefix_low: Lower end of its 95 % interval, as of the size.
        prefix_high: Upper end.
        is_minimal: Whether no single component can go without faithfulness falling under the target
            on the sizing prompts; None where the circuit was not pruned.
        n_components: How many components there are to choose from.
        faithfulness: The circuit's faithfulness on the prompts that it is measured on.
        faithfulness_low: Lower end of its 95 % interval over these prompts; NaN without one.
        faithfulness_high: Upper end.
        faithfulness_interval: What was drawn for that interval: "prompts within templates",
            "prompts", or "none: " and why.
        faithfulness_sizing: Its faithfulness on the prompts that chose its size: at the target by
            choice, so more than fresh prompts show.
        measured_on: Which prompts faithfulness is measured on: "reporting", fresh ones, or
            "sizing", the ones that the circuit was found on, where no fresh prompt shares their
            templates. Everything below but redrawn and resampled sizes is of the same prompts.
        n_measured: How many these are.
        faithfulness_without_last: Faithfulness without the component of the lowest rank; None for
            an empty circuit.
        faithfulness_of_rest: The same of all components outside the circuit: what the circuit
            leaves out. Near 0 if the circuit is complete (Wang et al. 2022, section 4.2).
        redrawn_sizes: The size of the circuit found again on each pair of halves of the ranking and
            the sizing prompts, for paired ratios; none without an interval.
        redrawn_prefixes: The same before pruning.
        stability: How often each component is in the circuits of the halves; None without halves,
            of attention edges, and in files of before it was kept.
        resampled_templates: The size in each resample of whole templates; none where there are
            fewer than five.
        template_sizes: The size that each template alone would need, along the same ranking.
        n_attribution: Components that hold the target's share of all absolute attribution.
        random_faithfulness: Faithfulness of random circuits of as many components.
        curve_sizes: About twenty sizes of prefixes, from nothing to everything, and the one that
            the search chose.
        curve_faithfulness: Faithfulness at each.
        curve_low: Lower end of the faithfulness's 95 % interval at each.
        curve_high: Upper end.
        cpr: Area under the faithfulness curve over the share of components (MIB).
        cmd: Area between the faithfulness curve and 1 (MIB).
    """

    circuit: Circuit
    size: float
    size_low: float
    size_high: float
    interval: str
    prefix_size: float
    prefix_low: float
    prefix_high: float
    is_minimal: bool | None
    n_components: float
    faithfulness: float
    faithfulness_low: float
    faithfulness_high: float
    faithfulness_interval: str
    faithfulness_sizing: float
    measured_on: MeasuredOn
    n_measured: int
    faithfulness_without_last: float | None
    faithfulness_of_rest: float
    redrawn_sizes: tuple[float, ...]
    redrawn_prefixes: tuple[float, ...]
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
    stability: Stability | None = None

    def __repr__(self) -> str:
        return (
            f"Evidence({sized(self.size)} of {sized(self.n_components)} "
            f"{self.circuit.granularity}s, "
            f"faithfulness {self.faithfulness:.3f} on {self.n_measured} {self.measured_on} prompts)"
        )

    @property
    def is_in_every_half(self) -> bool:
        """Whether all halves have the same size: its interval is one number, not no width."""
        return len(set(self.redrawn_sizes)) == 1

    @property
    def random_same_size(self) -> float:
        """Mean faithfulness of the random circuits."""
        return sum(self.random_faithfulness) / len(self.random_faithfulness)

    def to_json(self) -> dict[str, Any]:
        """Returns the evidence as plain values; where there is no interval, its ends are None."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _BOUNDS:
            plain[name] = _each(plain[name], lambda end: None if math.isnan(end) else end)
        kept = None if self.stability is None else asdict(self.stability)
        return plain | {"circuit": pack_circuit(self.circuit), "stability": kept}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Evidence:
        """Returns the evidence that `to_json` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        for name in _BOUNDS:
            values[name] = _each(values[name], lambda end: math.nan if end is None else end)
        values["circuit"] = unpack_circuit(content["circuit"])
        if (kept := content.get("stability")) is not None:
            values["stability"] = Stability.from_json(kept)
        return cls(**values)


def _each(ends: Any, change: Callable[[Any], Any]) -> Any:
    """One end of an interval changed, or each of several."""
    return tuple(map(change, ends)) if isinstance(ends, tuple) else change(ends)


@dataclass(frozen=True, repr=False)
class Discovery:
    """What was found in one model for one task.

    Attributes:
        task: The task's name.
        metric: The metric's name.
        metric_full: The metric of the whole model on the reporting prompts, mean.
        metric_empty: The metric with everything ablated, mean.
        accuracy: Share of reporting prompts whose most likely token is a right answer.
        n_reporting: Number of reporting prompts.
        config: How it was looked for.
        circuits: The circuit of each granularity, with its evidence.
    """

    task: str
    metric: str
    metric_full: float
    metric_empty: float
    accuracy: float
    n_reporting: int
    config: DiscoverConfig
    circuits: dict[str, Evidence]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{sized(one.size)} {name}s" for name, one in self.circuits.items())
        return f"Discovery({self.task}: {sizes} at {percent(self.config.target, 4)})"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row for each granularity: size and faithfulness with intervals, baselines.

        `prefix` is the size before pruning; `minimal` is `Evidence.is_minimal`. `measured_on` says
        which prompts faithfulness is of, as in `Evidence`. `rest` is the faithfulness of all
        components outside the circuit, `random_same_size` that of random circuits, on the mean.
        """
        return pd.DataFrame(
            [
                {
                    "granularity": granularity,
                    "size": evidence.size,
                    "size_low": evidence.size_low,
                    "size_high": evidence.size_high,
                    "interval": evidence.interval,
                    "prefix": evidence.prefix_size,
                    "prefix_low": evidence.prefix_low,
                    "prefix_high": evidence.prefix_high,
                    "minimal": evidence.is_minimal,
                    "components": evidence.n_components,
                    "faithfulness": evidence.faithfulness,
                    "faithfulness_low": evidence.faithfulness_low,
                    "faithfulness_high": evidence.faithfulness_high,
                    "measured_on": evidence.measured_on,
                    "prompts": evidence.n_measured,
                    "rest": evidence.faithfulness_of_rest,
                    "random_same_size": evidence.random_same_size,
                }
                for granularity, evidence in self.circuits.items()
            ]
        )

    def _repr_html_(self) -> str:
        caption = (
            f"{self.task}: {self.metric} {self.metric_full:.3f} (ablated {self.metric_empty:.3f}), "
            f"accuracy {percent(self.accuracy)} on {self.n_reporting} reporting prompts; target "
            f"{percent(self.config.target, 4)}"
        )
        return table_html(caption, self.to_dataframe())

    def to_json(self) -> dict[str, Any]:
        """Returns the discovery as plain values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["config"] = asdict(self.config)
        circuits = plain.pop("circuits")
        return plain | {"found": {name: circuit.to_json() for name, circuit in circuits.items()}}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Discovery:
        """Returns the discovery that `to_json` wrote."""
        content = dict(content)
        config, circuits = dict(content.pop("config")), content.pop("found")
        config["granularities"] = tuple(config["granularities"])
        return cls(
            **content,
            config=DiscoverConfig(**config),
            circuits={name: Evidence.from_json(circuit) for name, circuit in circuits.items()},
        )

    def save(self, path: str | Path) -> None:
        """Writes the discovery as JSON, to a temporary file that is then renamed."""
        write_json(Path(path), {"format": FORMAT} | self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Discovery:
        """Returns the discovery in a file, or the only one in a folder of results.

        Args:
            path: A file that `save` wrote, or a folder that `circuits discover` wrote.

        Raises:
            ValueError: there is none, there are several, or they are of another version of the
                package.
        """
        if Path(path).is_dir():
            return _only_one_in(Path(path))
        try:
            content = json.loads(Path(path).read_text())
            check_format(content, path, "found", "circuits discover")
            return cls.from_json({k: v for k, v in content.items() if k != "format"})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a saved discovery ({type(error).__name__}: {error}); "
                "make one with `circuits discover`"
            ) from error


def _only_one_in(folder: Path) -> Discovery:
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {RESULTS_FILE}; make one with `circuits discover`")
    try:
        content = json.loads(path.read_text())
        check_format(content, path, "discoveries", "circuits discover")
        several = [
            discovery for found in content["discoveries"].values() for discovery in found.values()
        ]
        if len(several) == 1:
            return Discovery.from_json(several[0])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no results ({type(error).__name__}: {error}); make them with "
            "`circuits discover`"
        ) from error
    raise ValueError(
        f"{folder} holds {len(several)} discoveries; choose one of "
        "circuits.load_comparison(folder).discoveries[task][model]"
    )


def check_format(content: dict[str, Any], path: str | Path, mark: str, command: str) -> None:
    """Refuses what another version of the package saved: the field `mark` tells that it did.

    Raises:
        ValueError: the file's format is not this one.
    """
    if mark in content and content.get("format", 1) not in READ:
        read = f"{READ[0]} to {READ[-1]}"
        raise ValueError(
            f"{path} was saved in format {content.get('format', 1)} by another version of "
            f"circuits; this version reads formats {read}. Make it again with `{command}`"
        )
