"""What a sparse model's folder says about its gate: `gate.json`, read as a `GateCard`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from circuits.files import write_json
from circuits.reading import is_there, number, read_json, shown

GATE_FILE = "gate.json"

_NUMBERS = ("tau", "slack", "ce", "dense_ce", "kl", "epsilon")
_OBJECTS = ("density", "training", "versions")


@dataclass(frozen=True)
class GateCard:
    """What `gate.json` says about a sparse model: its gate, and how it came about.

    Attributes:
        bias: The number b added to every attention score before the gate.
        tau: The bound on the cross-entropy in nats per token, None if unknown or not bounded.
        slack: The part of tau that was granted above the dense model's cross-entropy.
        ce: The cross-entropy reached on held-out data with the deterministic gate.
        dense_ce: The cross-entropy of the dense model on the same data.
        kl: KL(dense || sparse) in nats per token on the same data, where it was bounded.
        epsilon: The bound on it.
        satisfied: Whether `ce` keeps within `tau`, or `kl` within `epsilon`.
        density: Fractions of open edges: `overall`, the `context` in tokens that it holds for, and,
            if known, `per_layer`. None if it was not measured.
        training: Config, seed, steps and data of the post-training.
        versions: Versions of the software that made the model.

    Raises:
        ValueError: an entry that cannot be true; the error names it.
    """

    bias: float = 0.0
    tau: float | None = None
    slack: float | None = None
    ce: float | None = None
    dense_ce: float | None = None
    kl: float | None = None
    epsilon: float | None = None
    satisfied: bool | None = None
    density: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what cannot be true."""
        for name in ("bias", *_NUMBERS):
            value = getattr(self, name)
            if value is not None:
                number(value, name)
        if self.density is not None:
            _check_density(self.density)

    def save(self, folder: str | Path) -> None:
        """Writes `gate.json` into `folder`."""
        write_json(Path(folder) / GATE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> GateCard:
        """Returns the card that `folder` holds.

        Raises:
            FileNotFoundError: there is no `gate.json`.
            ValueError: `gate.json` is not a file, not a JSON object, or has unknown or impossible
                entries.
        """
        path = Path(folder) / GATE_FILE
        values = read_json(path)
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{path} has unknown entries {unknown[:5]}; known are {known}")
        if "bias" not in values:
            raise ValueError(f"{path} lacks the entry 'bias', the number added to every score")
        try:
            for name in ("bias", *_NUMBERS):
                if name == "bias" or values.get(name) is not None:
                    values[name] = number(values[name], name)
            _check_kinds(values)
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def find_gate_card(folder: Path) -> GateCard | None:
    """Returns the card of a model's folder, None if it holds no `gate.json`.

    Raises:
        ValueError: something called `gate.json` that is not a card.
    """
    return GateCard.load(folder) if is_there(folder / GATE_FILE) else None


def _check_kinds(values: dict[str, Any]) -> None:
    """Refuses entries of the wrong kind; a null is what is not known, and is left out."""
    for name in _OBJECTS:
        if values.get(name, {}) is None:
            del values[name]
        _check_object(values.get(name, {}), name)
    _check_object(values.get("training", {}).get("config", {}), "training: config")
    for name, version in values.get("versions", {}).items():
        if not isinstance(version, str):
            raise ValueError(f"versions: {name} must be text, got {shown(version)}")
    satisfied = values.get("satisfied")
    if satisfied is not None and not isinstance(satisfied, bool):
        raise ValueError(f"satisfied must be true or false, got {shown(satisfied)}")


def _check_object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {shown(value)}")


def _check_density(density: Mapping[str, Any]) -> None:
    fractions = density.get("per_layer", [])
    if not isinstance(fractions, list | tuple):
        raise ValueError(f"density: per_layer must be a list, got {shown(fractions)}")
    for name, value in [
        ("overall", density.get("overall")),
        *(("per_layer", f) for f in fractions),
    ]:
        if not 0 <= number(value, f"density: {name}") <= 1:
            raise ValueError(f"density: {name} must be in [0, 1], got {shown(value)}")
    context = density.get("context")
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise ValueError(
            f"density: context must be a whole number of tokens, 1 or more, got {shown(context)}"
        )
