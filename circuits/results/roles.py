"""What one head does on one task, as `circuits.comparison.head_roles` measures it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadRole:
    """What one head does on one task.

    Attributes:
        task: The task's name.
        model: "dense" or "sparse"; "model" where there is one.
        head: The head's name.
        in_circuit: Whether it is in the model's circuit of heads (of edges, if no heads were
            looked for).
        previous_token: Mean attention to the token before.
        duplicate_token: Mean attention to the first occurrence of the same token.
        induction: Mean attention to what followed the first occurrence.
        to_answer: Mean attention from the last position to the answer; None if prompts lack it.
        to_changed: Mean attention from the last position to the changed tokens.
        direct: What the head adds to the logit difference, in logits, mean over prompts.
        role: The strongest of these, or "" if none reaches 0.3: `name_mover` or
            `negative_name_mover` by the sign of `direct`, `changed_token`, `induction`,
            `duplicate_token`, `previous_token`.
        twin: The head of the other model whose attention on the prompts is most like this one's;
            "" where there is no other model.
        similarity: The cosine of the two attention patterns, from 0 to 1; None without a twin.
    """

    task: str
    model: str
    head: str
    in_circuit: bool
    previous_token: float
    duplicate_token: float
    induction: float
    to_answer: float | None
    to_changed: float
    direct: float
    role: str
    twin: str
    similarity: float | None
