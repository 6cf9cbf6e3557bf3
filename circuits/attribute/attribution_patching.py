"""Attribution patching: a first-order estimate of every ablation from one backward pass.

Source: Nanda 2023 for nodes; Syed et al. 2023 (arXiv 2310.10348), EAP, for edges:
(z_u^clean - z_u^ablated) . dm/d(input of v), the gradient taken in the clean run. Layer norm and
softmax are differentiated, not frozen.
"""

from __future__ import annotations

from circuits.ablate import Experiment
from circuits.attribute.gradients import accumulate_scores, template_means
from circuits.attribute.scores import Scores


def attribution_patching(experiment: Experiment) -> Scores:
    """Returns scores of all edges and attention edges, from gradients in the clean run."""
    return score_along_path(experiment, [1.0], method="attribution_patching")


def score_along_path(experiment: Experiment, fractions: list[float], *, method: str) -> Scores:
    """Returns scores whose gradient is the mean over `fractions` of the path to the clean input.

    Raises:
        ValueError: a score is not finite.
    """
    prompts, cfg = experiment.prompts, experiment.model.cfg
    pos = prompts.clean.shape[1]
    new = experiment.ablated.outputs.new_zeros
    edges = new(experiment.graph.mask.shape)
    per_prompt = new((len(prompts), cfg.n_layers, cfg.n_heads, pos, pos))
    for fraction in fractions:
        accumulate_scores(
            experiment, edges, per_prompt, fraction=fraction, weight=1 / len(fractions)
        )
    return Scores(
        graph=experiment.graph,
        edges=edges.cpu() / len(prompts),
        attention_edges=template_means(experiment, per_prompt.cpu()),
        method=method,
        ablation=experiment.ablation,
        n_prompts=len(prompts),
    ).check_finite()
