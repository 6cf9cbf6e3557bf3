"""Attribution patching: a first-order estimate of every ablation from one backward pass.

Source: Nanda 2023 for nodes; Syed et al. 2023 (arXiv 2310.10348), EAP, for edges:
(z_u^clean - z_u^ablated) . dm/d(input of v), the gradient taken in the clean run. Layer norm and
softmax are differentiated, not frozen.
"""

from __future__ import annotations

from circuits.attribute.input_path import score_along_inputs
from circuits.attribute.scores import Scores
from circuits.intervene.experiment import Experiment


def attribution_patching(experiment: Experiment, *, attention_edges: bool = True) -> Scores:
    """Returns scores of all edges, from gradients in the clean run.

    Args:
        experiment: What is studied.
        attention_edges: Whether attention edges are scored too, in the same passes.

    Raises:
        ValueError: a score is not finite, or the model has a norm that is not known.
    """
    return score_along_inputs(
        experiment, [1.0], method="attribution_patching", attention_edges=attention_edges
    )
