import pytest
import torch

from circuits.discovery.holding import heads_holding
from circuits.intervene.experiment import prepare_experiment
from tests.helpers import make_prompts, make_tiny_model


def by_hand(model, clean, corrupted, answer, wrong, share):
    """Heads of one prompt, largest change of z times its gradient first, until they hold enough."""
    z = {"clean": {}, "corrupted": {}}

    def note(run, layer):
        def keep(act, hook):
            z[run][layer] = act
            act.retain_grad() if act.requires_grad else None

        return f"blocks.{layer}.attn.hook_z", keep

    for run, tokens in (("corrupted", corrupted), ("clean", clean)):
        logits = model.run_with_hooks(tokens[None], fwd_hooks=[note(run, 0), note(run, 1)])[0, -1]
    (logits[answer] - logits[wrong]).backward()
    sizes = []
    for layer in range(2):
        change = (z["clean"][layer] - z["corrupted"][layer]) * z["clean"][layer].grad
        sizes += change[0].sum(dim=(0, 2)).abs().tolist()
    sizes.sort(reverse=True)
    held, n = 0.0, 0
    while held < share * sum(sizes):
        held, n = held + sizes[n], n + 1
    return n


def test_each_prompt_is_counted_by_itself():
    model = make_tiny_model(n_heads=4, d_head=4)
    prompts = make_prompts(model, batch=4)
    experiment = prepare_experiment(model, prompts, metric="logit_diff")
    for share in (0.5, 0.8):
        table = heads_holding({"dense": experiment}, share)
        assert table.prompt.tolist() == [0, 1, 2, 3]
        assert table.template.tolist() == list(prompts.templates)
        assert set(table.of) == {8}
        rows = zip(
            prompts.clean, prompts.corrupted, prompts.answers, prompts.wrong_answers, strict=True
        )
        expected = [by_hand(model, c, d, int(a), int(w), share) for c, d, a, w in rows]
        assert table.heads.tolist() == expected
    assert heads_holding(experiment, 1.0).model.tolist() == ["model"] * 4
    assert torch.tensor(heads_holding(experiment, 1.0).heads.tolist()).min() >= 7


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="share is 0; it must be over 0"):
        heads_holding({}, 0)
    with pytest.raises(ValueError, match="unknown method 'guess'"):
        heads_holding({}, method="guess")
