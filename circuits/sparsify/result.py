"""What post-training comes to: a sparse model and how well it keeps its bound, or a control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from circuits.gate.card import GateCard
from circuits.gate.density import Density
from circuits.models.load import versions
from circuits.numbers import percent
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.verdict import BoundWatch, is_attention_free, is_new_text

if TYPE_CHECKING:
    from circuits.models.backend import Model
    from circuits.models.save_adapter import LowRankUpdate


@dataclass(frozen=True)
class TrainResult:
    """What post-training came to.

    Attributes:
        model: The gated model in evaluation mode, with the weights after `best_step` steps; a
            control is dense.
        satisfied: Whether its CE is at most tau, or its KL at most epsilon where that is bounded.
            If not, no evaluated state kept the bound and the model is the last state of the run. A
            control's always is.
        ce: Its cross-entropy on the selection set with the deterministic gate, in nats.
        dense_ce: The dense model's cross-entropy on the same sequences, in nats.
        tau: The bound on the CE; infinite where the KL is bounded, and for a control.
        slack: The part of tau above dense_ce, in nats; negative for a bound below it.
        density: Its density on the selection set; 1 for a control.
        best_step: The number of steps after which its weights were taken; a control's are the last.
        steps: The number of steps run.
        seconds: Time spent, over all resumed parts of the run.
        data: The description of the token stream.
        config: The config of the run.
        watch: How often lambda's checks found the bound broken; none for a control.
        kl: KL(dense || sparse) on the selection set in nats a token; None unless it is bounded, by
            `config.epsilon`.
        notes: What was to be warned of while the run went on.
        updates: The low-rank updates in the weights of `model`, for `save_adapter`; none where
            whole weights were trained.
    """

    model: Model
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
    watch: BoundWatch = BoundWatch()
    kl: float | None = None
    notes: tuple[str, ...] = ()
    updates: Mapping[str, LowRankUpdate] = field(default_factory=dict)

    @property
    def is_by_kl(self) -> bool:
        """Whether KL(dense || sparse) was bounded, and not the CE."""
        return self.config.gate and self.config.bound == "kl"

    def _bound(self) -> str:
        if self.is_by_kl:
            return f"KL(dense || sparse) <= {self.config.epsilon:g}"
        return f"CE <= {self.tau:.4f}"

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the result is not a success, a sentence each; nothing if it is one."""
        if not self.config.gate:
            return ()
        found = []
        if not self.satisfied:
            more = "more (--epsilon)" if self.is_by_kl else "some slack (--slack)"
            found.append(
                f"no state kept the bound {self._bound()}, and this is the last one; train longer, "
                f"allow {more}, or lower the edge weight (--edge-weight)"
            )
        if is_attention_free(self.density):
            found.append(
                f"{percent(self.density.overall)} of attention edges are open: this model "
                "does without attention, and has no circuits to find; lower the edge weight "
                "(--edge-weight), and look whether the text needs attention at all"
            )
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the result is relied on, a sentence each."""
        is_by_ce = self.config.gate and not self.is_by_kl
        if not (is_by_ce and is_new_text(self.ce, self.dense_ce, self.tau)):
            return self.notes
        return (
            *self.notes,
            f"CE is {self.dense_ce - self.ce:.2f} nats under the dense model's: training has "
            "taught the model this text, which was new to it, so that CE <= tau says little about "
            "what the gates cost; train a control by the same recipe (--control) and compare with "
            "it, and bound the twin by the control's CE (--tau), or bound its divergence from the "
            "dense model (--bound kl)",
        )

    def summary(self) -> dict[str, Any]:
        """Returns what the run came to, as JSON."""
        return {
            "satisfied": self.satisfied,
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "ce": self.ce,
            "dense_ce": self.dense_ce,
            "tau": self.tau if self.config.gate and not self.is_by_kl else None,
            **({"kl": self.kl, "epsilon": self.config.epsilon} if self.is_by_kl else {}),
            "density": self.density.overall,
            "density_per_head": self.density.per_head.tolist(),
            "context": self.density.context,
            "steps": self.steps,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "bound": asdict(self.watch),
        }

    def card(self) -> GateCard:
        """Returns what `gate.json` says about the model.

        Raises:
            ValueError: the model is a control, which has no gate.
        """
        if not self.config.gate:
            raise ValueError("a control has no gate to make a card of; save the model without one")
        return GateCard(
            bias=self.config.bias,
            tau=None if self.is_by_kl else self.tau,
            slack=None if self.is_by_kl else self.slack,
            kl=self.kl,
            epsilon=self.config.epsilon if self.is_by_kl else None,
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
                "failures": list(self.failures),
                "warnings": list(self.warnings),
                "bound": asdict(self.watch),
            },
            versions=versions(),
        )
