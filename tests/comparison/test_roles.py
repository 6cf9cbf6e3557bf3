from dataclasses import replace
from typing import Any

import pytest
import torch

from circuits.comparison.roles import head_roles
from circuits.discovery.hand_built import duplicate_token, induction
from tests.helpers import make_prompts, make_tiny_model, skip_file_without_hooked_transformer

skip_file_without_hooked_transformer()


def roles_of(built, other=None):
    models = {"dense": built.model, "sparse": built.model if other is None else other}
    prompts = built.prompts(16).reporting
    found = head_roles(
        models, dict.fromkeys(models, prompts), dict.fromkeys(models, ("a0.h0",)), "a task"
    )
    return {(one.model, one.head): one for one in found}


def test_prompts_of_other_tokens_are_refused():
    built = induction()
    models = {"dense": built.model, "sparse": built.model}
    prompts = built.prompts(16)
    heads = dict.fromkeys(models, ())
    both = {"dense": prompts.reporting, "sparse": prompts.ranking}
    with pytest.raises(ValueError, match="prompts of dense and sparse are not the same tokens"):
        head_roles(models, both, heads, "a task")


def test_attention_that_is_not_finite_is_an_error_that_names_the_model():
    models = {"dense": make_tiny_model(), "sparse": make_tiny_model()}
    prompts = make_prompts(models["dense"])

    def break_late(tensor, hook):
        # No prompt is as long, but random tokens that come twice are.
        return tensor.masked_fill(torch.arange(tensor.shape[-2])[:, None] >= 20, torch.nan)

    # HookedTransformer itself makes zeros of NaN here; a TransformerBridge need not.
    models["sparse"].blocks[0].attn.hook_pattern.add_hook(break_late, is_permanent=True)
    both, heads = dict.fromkeys(models, prompts), dict.fromkeys(models, ())
    with pytest.raises(ValueError, match="sparse model: previous_token of a0.h0 is not finite"):
        head_roles(models, both, heads, "a task")


def test_the_heads_of_a_known_induction_circuit_have_their_roles():
    roles = roles_of(induction())
    first, second = roles["dense", "a0.h0"], roles["dense", "a1.h0"]
    assert first.role == "previous_token"
    assert first.previous_token > 0.9
    assert second.to_answer is not None and second.to_answer > 0.7
    assert second.role == "name_mover"  # On the task; on repeated tokens it is the induction head.
    assert second.induction > 0.7
    assert second.direct > 0.5
    assert first.direct == pytest.approx(0, abs=1e-4)


def test_a_known_duplicate_token_head_is_found():
    roles = roles_of(duplicate_token())
    strongest = max(
        (one for one in roles.values() if one.model == "dense"), key=lambda one: one.duplicate_token
    )
    assert strongest.head in duplicate_token().nodes
    # It attends to a token and to its first occurrence alike.
    assert strongest.duplicate_token == pytest.approx(0.5, abs=0.05)


def test_direct_contributions_add_up_to_the_logit_difference():
    built = induction()
    prompts = built.prompts(16).reporting
    total = sum(one.direct for one in roles_of(built).values() if one.model == "dense")
    logits = built.model(prompts.clean)[torch.arange(16), prompts.last]
    answer, wrong = (
        logits.gather(1, tokens).mean() for tokens in (prompts.answers, prompts.wrong_answers)
    )
    # Nothing but heads writes towards the answers in this model.
    assert total == pytest.approx((answer - wrong).item(), abs=0.05)


def test_a_norm_behind_heads_scales_what_they_add_to_the_logits():
    model: Any = make_tiny_model(
        normalization_type="RMS", use_normalization_before_and_after=True, dtype=torch.float64
    )
    prompts = make_prompts(model)
    roles = head_roles({"dense": model}, {"dense": prompts}, {"dense": ()}, "a task")
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.clean)
    rows, last = torch.arange(len(prompts)), prompts.last
    for role in roles:
        layer, head = int(role.head[1]), int(role.head[-1])
        block = model.blocks[layer]
        total = cache["z", layer].flatten(2) @ block.attn.W_O.flatten(0, 1) + block.attn.b_O
        share = cache["z", layer][:, :, head] @ block.attn.W_O[head] * block.ln1_post.w
        share = share / (total.square().mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
        logits = (share / cache["ln_final.hook_scale"] * model.ln_final.w) @ model.W_U
        logits = logits[rows, last]
        gap = logits.gather(1, prompts.answers) - logits.gather(1, prompts.wrong_answers)
        assert role.direct == pytest.approx(gap.mean().item(), abs=1e-6)


def test_a_twin_that_is_the_model_itself_matches_every_head_with_itself():
    for one in roles_of(induction()).values():
        assert one.similarity == pytest.approx(1, abs=1e-5)
    assert roles_of(induction())["dense", "a1.h0"].twin == "a1.h0"


def test_heads_are_matched_by_what_they_attend_to_and_not_by_name():
    built = induction()
    turned = induction().model
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            for block in turned.blocks:
                parameter = getattr(block.attn, name)
                parameter.copy_(parameter.flip(0))
    n_heads = built.model.cfg.n_heads
    roles = roles_of(built, turned)
    assert roles["dense", "a1.h0"].twin == f"a1.h{n_heads - 1}"
    assert roles["sparse", f"a1.h{n_heads - 1}"].twin == "a1.h0"


def test_membership_in_the_circuit_is_kept():
    assert {one.head for one in roles_of(induction()).values() if one.in_circuit} == {"a0.h0"}


def test_prompts_without_their_answer_have_no_attention_to_it():
    roles = roles_of(duplicate_token())
    assert all(one.to_answer is None for one in roles.values())


def test_more_than_two_models_are_refused():
    model = make_tiny_model()
    with pytest.raises(ValueError, match="matched between two models; got a, b, c"):
        head_roles(dict.fromkeys("abc", model), {}, {}, "a task")


def test_the_roles_of_a_model_alone_are_those_beside_another():
    built = induction()
    prompts = built.prompts(16).reporting
    alone = head_roles({"model": built.model}, {"model": prompts}, {"model": ["a0.h0"]}, "a task")
    both = roles_of(built)
    assert len(alone) == len(both) / 2
    for one in alone:
        other = both["dense", one.head]
        assert one == replace(other, task="a task", model="model", twin="", similarity=None)
