"""What a user can choose from, each value with the sentence that explains it.

Every kind of choice is a `Literal` for annotations and a mapping from its values to their sentences
for checks and for help. Checks, the command line and the docs read them here. Nothing is imported
but the standard library, so a list of choices costs no loading of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Granularity = Literal["head", "mlp", "edge", "attention_edge"]
"""The kinds of component that circuits are made of and counted in."""
GRANULARITIES: dict[Granularity, str] = {
    "head": "An attention head, with everything that it reads and writes.",
    "mlp": "The MLP of one layer.",
    "edge": "What one component writes, as another one reads it: a head's query, key or value "
    "input, an MLP, or the logits.",
    "attention_edge": "The link from a query token to a key token inside one head.",
}

Ablation = Literal["corrupted", "mean", "zero"]
"""What a component outside the circuit writes."""
ABLATIONS: dict[Ablation, str] = {
    "corrupted": "What it writes in the corrupted run.",
    "mean": "Its mean over the clean prompts of the same template, per position.",
    "zero": "Nothing at all.",
}

Gates = Literal["follow", "clean"]
"""What the gates of a sparse model do while a circuit runs; a dense model has none."""
GATES: dict[Gates, str] = {
    "follow": "Each decides from the scores of the run that it is in, also where that is ablated.",
    "clean": "Each is held at its value in the whole model's run on the same clean prompt.",
}

Selection = Literal["absolute", "signed", "greedy"]
"""How scores put components in order."""
SELECTIONS: dict[Selection, str] = {
    "absolute": "The greatest absolute score first.",
    "signed": "What supports the behaviour most first, what counters it last.",
    "greedy": "Edges grow from the logits, so that each leads somewhere; nodes as in absolute.",
}

AttributionMethod = Literal[
    "attribution_patching",
    "integrated_gradients",
    "integrated_activations",
    "gradient_average",
    "gim",
    "relevance_patching",
    "local_patching",
    "exact_patching",
]
"""How components are scored; `circuits.attribute.METHODS` has the functions."""
ATTRIBUTION_METHODS: dict[AttributionMethod, str] = {
    "attribution_patching": "The gradient in the clean run (EAP, Syed et al. 2023).",
    "integrated_gradients": "The mean gradient over a path of the input (EAP-IG inputs, Hanna et "
    "al. 2024).",
    "integrated_activations": "The mean gradient over a path of each component's output (EAP-IG "
    "activations).",
    "gradient_average": "The mean of the gradients at the clean and at the ablated input.",
    "gim": "The gradient in the clean run, changed where it hides what interacts (GIM, Edin et al. "
    "2025).",
    "relevance_patching": "Relevance in place of the gradient in the clean run (RelP, Rezaei "
    "Jafari et al. 2025).",
    "local_patching": "Each reader is run for real without its source; what follows is first "
    "order.",
    "exact_patching": "Everything after each component is run for real.",
}

METHOD_ALIASES: dict[str, AttributionMethod] = {
    "eap": "attribution_patching",
    "eap_ig": "integrated_gradients",
    "eap_ig_inputs": "integrated_gradients",
    "eap_ig_activations": "integrated_activations",
    "relp": "relevance_patching",
}
"""The methods by the names that the field has for them."""

MibTask = Literal[
    "ioi",
    "mcqa",
    "arithmetic_addition",
    "arithmetic_subtraction",
    "arc_easy",
    "arc_challenge",
]
"""The tasks of the MIB benchmark's circuit track."""
MIB_TASKS: dict[MibTask, str] = {
    "ioi": "Indirect object identification; the answers are names.",
    "mcqa": "The colour of a thing that the question names; the answers are labels of choices.",
    "arithmetic_addition": "A sum of two numbers, where it is one token.",
    "arithmetic_subtraction": "A difference of two numbers, where it is one token.",
    "arc_easy": "Science questions, the easy set of ARC; the answers are labels of choices.",
    "arc_challenge": "Science questions, the challenge set of ARC.",
}

MibLevel = Literal["edge", "node"]
"""What a ranking of the MIB benchmark chooses among."""
MIB_LEVELS: dict[MibLevel, str] = {
    "edge": "Edges, as everywhere here.",
    "node": "The input, heads and MLPs in one ranking, each with its edges to what is chosen.",
}

EdgePenalty = Literal["mean", "rms", "log"]
"""How the densities of the layers become one number; see `sparsify.loss.edge_penalty`."""
EDGE_PENALTIES: dict[EdgePenalty, str] = {
    "mean": "All open edges over all allowed edges, the objective of the paper.",
    "rms": "The root mean square of the layers' densities, which presses on the densest layer.",
    "log": "The mean of their logarithms, whose pressure does not fade as the gate closes.",
}

Bound = Literal["ce", "kl"]
"""What holds a sparse model to the dense one."""
BOUNDS: dict[Bound, str] = {
    "ce": "Its cross-entropy on held-out text is at most tau, the dense model's plus a slack.",
    "kl": "KL(dense || sparse) on held-out text is at most epsilon, which no learning of the text "
    "can buy.",
}

LowRankTargets = Literal["all", "attention", "mlp"]
"""Which weights have a low-rank update."""
LOW_RANK_TARGETS: dict[LowRankTargets, str] = {
    "all": "Those of attention and of the MLPs.",
    "attention": "Those that make queries, keys, values and the heads' output.",
    "mlp": "Those of the MLPs.",
}

SavedAs = Literal["auto", "merged", "adapter", "adapter-bfloat16"]
"""What a trained model is saved as."""
SAVED_AS: dict[SavedAs, str] = {
    "auto": "The adapter after low-rank training of a model that goes by a name; else the model.",
    "merged": "The whole model, with low-rank updates added to its weights.",
    "adapter": "Low-rank updates alone, as a PEFT adapter in float32.",
    "adapter-bfloat16": "The same in half the size; rounding moves the model a little.",
}

AttentionPath = Literal["auto", "hooks", "blockwise", "triton"]
"""How gated attention is computed in training."""
ATTENTION_PATHS: dict[AttentionPath, str] = {
    "auto": "The fastest of the others that works for the model on its device.",
    "hooks": "Through the hook points, which holds every score.",
    "blockwise": "In blocks of plain torch.",
    "triton": "By Triton kernels, on a GPU.",
}

Precision = Literal["float32", "bfloat16", "auto"]
"""What training steps compute in."""
PRECISIONS: dict[Precision, str] = {
    "float32": "Everything in the model's own dtype.",
    "bfloat16": "Training steps under autocast; weights and evaluations keep the model's dtype.",
    "auto": "What is fast: bfloat16 where the device computes it natively, else float32.",
}


_NONE: Mapping[str, str] = {}


def spelled(value: str, choices: Iterable[str], aliases: Mapping[str, str] = _NONE) -> str:
    """Returns a choice as it is written here: `attention-edges` is `attention_edge`.

    Hyphens stand for underscores, a plural for the singular, an alias for its choice. What is not a
    choice in any of these ways comes back as it was given, for `check_choice` to refuse.
    """
    known = tuple(choices)
    plain = value.lower().replace("-", "_")
    plain = aliases.get(plain, plain)
    for name in (plain, plain.removesuffix("s")):
        if name in known:
            return name
    return value


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses a value that is not among the choices.

    Args:
        name: What is chosen, in words, such as `granularity`.
        value: What was given.
        choices: The values to choose from.

    Raises:
        ValueError: the value is not one of them.
    """
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
