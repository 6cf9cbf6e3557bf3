"""Relevance patching: the factors of layer-wise relevance propagation in place of gradients.

Source: Rezaei Jafari et al. 2025 (arXiv 2508.21258), RelP. Attribution patching with the rules that
the authors' published code (FarnoushRJ/RelP on GitHub) calls

- LN: the scales of norms are constants;
- identity: an activation function hands on act(x) / x, a constant, instead of its slope;
- half: of the product in a gated MLP, each factor gets half.

Linear maps need no rule. A fourth rule there, AH, takes attention patterns as constants. It is left
out, as in the authors' demonstration: with it every edge into a query or key scores zero. Attention
is differentiated as it is.
"""

from __future__ import annotations

from circuits.attribute.backward_rules import BackwardRules
from circuits.attribute.input_path import score_along_inputs
from circuits.attribute.scores import Scores
from circuits.intervene.experiment import Experiment

RULES = BackwardRules(constant_scales=True, constant_slopes=True, product_share=0.5)


def relevance_patching(experiment: Experiment, *, attention_edges: bool = True) -> Scores:
    """Returns scores of all edges, from relevance handed back through the clean run.

    Raises:
        ValueError: a score is not finite, or the model's derivatives cannot be replaced.
    """
    return score_along_inputs(
        experiment,
        [1.0],
        method="relevance_patching",
        attention_edges=attention_edges,
        rules=RULES,
    )
