"""What a sparse model's folder says about its gate: `gate.json`, read as a `GateCard`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from circuits.files import write_json

GATE_FILE = "gate.json"

_CARD_NUMBERS = ("bias", "tau", "slack", "ce", "dense_ce")


@dataclass(frozen=True)
class GateCard:
    """What `gate.json` says about a sparse model: its gate, and how it came about.

    Attributes:
        bias: The number b added to every attention score before the gate.
        tau: The bound on the cross-entropy in nats per token, None if unknown.
        slack: The part of tau that was granted above the dense model's cross-entropy.
        ce: The cross-entropy reached on held-out data with the deterministic gate.
        dense_ce: The cross-entropy of the dense model on the same data.
        satisfied: Whether `ce` keeps within `tau`.
        density: Fractions of open edges: `overall`, `per_layer`, and the `context` they hold for.
        training: Config, seed, steps and data of the post-training.
        versions: Versions of the software that made the model.
    """

    bias: float = 0.0
    tau: float | None = None
    slack: float | None = None
    ce: float | None = None
    dense_ce: float | None = None
    satisfied: bool | None = None
    density: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be true."""
        for name in _CARD_NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"gate card: {name} must be finite, got {value!r}")
        density = self.density or {}
        for fraction in [density.get("overall", 0.0), *density.get("per_layer", [])]:
            if not 0 <= number(fraction, "gate card: a density") <= 1:
                raise ValueError(f"gate card: a density must be in [0, 1], got {fraction!r}")

    def save(self, folder: str | Path) -> None:
        """Writes `gate.json` into `folder`."""
        write_json(Path(folder) / GATE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> GateCard:
        """Returns the card that `folder` holds.

        Raises:
            ValueError: `gate.json` is no JSON object, or has unknown or impossible entries.
        """
        path = Path(folder) / GATE_FILE
        values = read_json(path)
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{path} has unknown entries {unknown}; known are {known}")
        if "bias" not in values:
            raise ValueError(f"{path} lacks the entry 'bias', the number added to every score")
        try:
            for name in _CARD_NUMBERS:
                if name == "bias" or values.get(name) is not None:
                    values[name] = number(values[name], f"gate card: {name}")
            for name in ("density", "training", "versions"):
                if not isinstance(values.get(name) or {}, dict):
                    raise ValueError(f"gate card: {name} must be an object, got {values[name]!r}")
            if values.get("satisfied") not in (None, True, False):
                raise ValueError(
                    f"gate card: satisfied must be true or false, got {values['satisfied']!r}"
                )
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        ValueError: the file holds no JSON, or no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def number(value: Any, what: str) -> float:
    """Returns a number read from a file; `what` names it in the error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number, got {value!r}")
    return float(value)
