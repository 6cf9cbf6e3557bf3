"""What post-training comes to: a sparse model and how well it keeps its bound, or a control."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from circuits.gate_card import GateCard
from circuits.models import versions
from circuits.open_edges import Density
from circuits.sparsify.config import TrainConfig

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class TrainResult:
    """What post-training came to.

    Attributes:
        model: The gated model in evaluation mode, with the weights after `best_step` steps; a
            control is dense.
        satisfied: Whether its CE is at most tau. If not, no evaluated state kept the bound and
            the model is the last state of the run. A control's always is.
        ce: Its cross-entropy on the selection set with the deterministic gate, in nats.
        dense_ce: The dense model's cross-entropy on the same sequences, in nats.
        tau: The bound; infinite for a control, which has none.
        slack: The part of tau above dense_ce, in nats; negative for a bound below it.
        density: Its density on the selection set; 1 for a control.
        best_step: The number of steps after which its weights were taken; a control's are the last.
        steps: The number of steps run.
        seconds: Time spent, over all resumed parts of the run.
        data: The description of the token stream.
        config: The config of the run.
    """

    model: HookedTransformer
    satisfied: bool
    ce: float
    dense_ce: float
    tau: float
    slack: float
    density: Density
    best_step: int
    steps: int
    seconds: float
    data: dict[str, Any]
    config: TrainConfig

    def card(self) -> GateCard:
        """Returns what `gate.json` says of the model.

        Raises:
            ValueError: the model is a control, which has no gate.
        """
        if not self.config.gate:
            raise ValueError("a control has no gate to make a card of; save the model without one")
        return GateCard(
            bias=self.config.bias,
            tau=self.tau,
            slack=self.slack,
            ce=self.ce,
            dense_ce=self.dense_ce,
            satisfied=self.satisfied,
            density={
                "overall": self.density.overall,
                "per_layer": self.density.per_layer.tolist(),
                "context": self.density.context,
            },
            training={
                "config": asdict(self.config),
                "data": self.data,
                "steps": self.steps,
                "best_step": self.best_step,
                "seconds": self.seconds,
            },
            versions=versions(),
        )
