"""A circuit of one model, run in the other, as `circuits.comparison.transfer` measures it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transfer:
    """A circuit found in one model, run in the other.

    Attributes:
        task: The task's name.
        granularity: Of the circuit.
        found_in: The model that the circuit was found in.
        run_in: The model that it was run in.
        faithfulness: F of the circuit in `run_in`, on reporting prompts.
        random: The mean F of random circuits of as many components there.
        own: F of the circuit that was found in `run_in` itself.
    """

    task: str
    granularity: str
    found_in: str
    run_in: str
    faithfulness: float
    random: float
    own: float
