"""Gradient interaction modifications: a backward pass that does not let interactions hide causes.

Source: Edin et al. 2025 (arXiv 2505.17630). Where several keys with like values share the attention
of a query, none of them seems to matter alone, because the softmax gives to the others what one
loses; norms and products hide causes in like ways. Three changes of the backward pass:

- the scales of norms are constants;
- the softmax's Jacobian is taken at half the scores, p = softmax(s / 2), without a factor 1/2;
- the gradient that reaches a product is halved at each factor. The pattern and the values are one
  product, the queries and keys inside the pattern another: 1/2 at v, 1/4 at q and at k. In gated
  MLPs, 1/2 at the gate and at what it multiplies.

The numbers, the temperature without its factor, and the halves in gated MLPs are those of the code
that the authors published (JoakimEdin/gim and corticph/gim on GitHub). It differentiates activation
functions as they are, as is done here.
"""

from __future__ import annotations

from circuits.attribute.backward_rules import BackwardRules
from circuits.attribute.input_path import score_along_inputs
from circuits.attribute.scores import Scores
from circuits.intervene.experiment import Experiment

RULES = BackwardRules(
    constant_scales=True,
    temperature=2.0,
    shares={"q": 0.25, "k": 0.25, "v": 0.5},
    product_share=0.5,
)


def gim(experiment: Experiment, *, attention_edges: bool = True) -> Scores:
    """Returns scores of all edges, from modified gradients in the clean run.

    Through each head a score is halved at least, so that scores rank components and do not estimate
    what ablating them does.

    Raises:
        ValueError: a score is not finite, or the model's derivatives cannot be replaced.
    """
    return score_along_inputs(
        experiment, [1.0], method="gim", attention_edges=attention_edges, rules=RULES
    )
