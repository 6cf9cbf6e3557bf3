"""Circuits of attention edges, against a transformer that is written out here.

The referee shares no code with the package: it computes every layer from the weights, puts the
corrupted run's term A_ij v_j in place of each attention edge that is not listed, and so gives the
faithfulness of the list.
"""

from typing import Any

import pytest
import torch
from torch.nn import functional

from circuits.discovery.find_circuits import discover
from circuits.models.load import load_model, tokenizer_of
from circuits.prompts import Prompts
from circuits.results.discovery import DiscoverConfig
from circuits.tasks import Task, TaskPrompts, get_task
from tests.helpers import make_tiny_model, skip_file_without_hooked_transformer

skip_file_without_hooked_transformer()

TASK = Task("made_up", "prompts are given", "logit_diff", lambda _tokenizer, _n, _seed: [])
CONFIG: dict[str, Any] = {"granularities": ("attention_edge",), "target": 0.8, "redraws": 0}


def norm(resid, part, eps):
    resid = resid - resid.mean(-1, keepdim=True)
    resid = resid / (resid.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return resid * part.w + part.b if hasattr(part, "w") else resid


def plain_run(model, tokens, listed: Any = None, gone: Any = None):
    """Logits at the end of one prompt, and its attention terms [query, key, d_head] by head."""
    cfg, pos = model.cfg, len(tokens)
    resid = model.W_E[tokens] + model.W_pos[:pos]
    causal = torch.ones(pos, pos).tril().bool()
    terms = {}
    for layer, block in enumerate(model.blocks):
        attn, x = block.attn, norm(resid, block.ln1, cfg.eps)
        written = attn.b_O
        for head in range(cfg.n_heads):
            q, k, v = (x @ w[head] + b[head] for w, b in (
                (attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)))  # fmt: skip
            pattern = (q @ k.T / cfg.d_head**0.5).masked_fill(~causal, -torch.inf).softmax(-1)
            term = pattern[:, :, None] * v[None]
            terms[layer, head] = term
            if listed is not None:
                mine = torch.zeros(pos, pos, 1)
                for at, which, query, key in listed:
                    if (at, which) == (layer, head):
                        mine[query, key] = 1
                term = mine * term + (1 - mine) * gone[layer, head]
            written = written + term.sum(1) @ attn.W_O[head]
        resid = resid + written
        hidden = functional.gelu(norm(resid, block.ln2, cfg.eps) @ block.mlp.W_in + block.mlp.b_in)
        if cfg.act_fn == "gelu_new":
            inner = norm(resid, block.ln2, cfg.eps) @ block.mlp.W_in + block.mlp.b_in
            hidden = functional.gelu(inner, approximate="tanh")
        resid = resid + hidden @ block.mlp.W_out + block.mlp.b_out
    return norm(resid[-1], model.ln_final, cfg.eps) @ model.W_U + model.b_U, terms


@torch.no_grad()
def plain_faithfulness(model, prompts, listed):
    """F over the prompts whose template has a list, and how many these are."""
    totals, n = torch.zeros(3), 0
    for row, template in enumerate(prompts.templates):
        if template not in listed:
            continue
        length = int(prompts.lengths[row])
        clean, corrupted = (ids[row, :length] for ids in (prompts.clean, prompts.corrupted))
        edges = [(one.layer, one.head, one.query, one.key) for one in listed[template]]
        assert all(query < length for _, _, query, _ in edges)
        empty, gone = plain_run(model, corrupted)
        full, _ = plain_run(model, clean)
        circuit, _ = plain_run(model, clean, edges, gone)
        right, wrong = int(prompts.answers[row, 0]), int(prompts.wrong_answers[row, 0])
        totals += torch.stack([one[right] - one[wrong] for one in (circuit, full, empty)])
        n += 1
    circuit, full, empty = totals / n
    return ((circuit - empty) / (full - empty)).item(), n


def check(model, prompts, found):
    """Holds what discovery says against the referee, on the prompts that it says it measured."""
    part = getattr(prompts, found.measured_on)
    faithfulness, n = plain_faithfulness(model, part, found.circuit.attention_edges)
    assert found.faithfulness == pytest.approx(faithfulness, abs=2e-4)
    assert found.n_measured == n
    sizing, _ = plain_faithfulness(model, prompts.sizing, found.circuit.attention_edges)
    assert found.faithfulness_sizing == pytest.approx(sizing, abs=2e-4)


def rows_of(model, plan, seed):
    """Random prompts of the (template, length) of the plan, whose answers the change moves most."""
    generator = torch.Generator().manual_seed(seed)
    width = max(length for _, length in plan)
    clean = torch.zeros(len(plan), width, dtype=torch.long)
    corrupted, answers = clean.clone(), []
    for row, (_, length) in enumerate(plan):
        clean[row, :length] = torch.randint(2, 30, (length,), generator=generator)
        corrupted[row, :length] = clean[row, :length]
        corrupted[row, 1:-1] = torch.randint(2, 30, (width - 2,), generator=generator)
        corrupted[row, length:] = 0
        with torch.no_grad():
            change = model(clean[row : row + 1, :length]) - model(corrupted[row : row + 1, :length])
        answers.append((int(change[0, -1].argmax()), int(change[0, -1].argmin())))
    answers = torch.tensor(answers)
    return Prompts(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.tensor([length for _, length in plan]),
        answers=answers[:, :1],
        wrong_answers=answers[:, 1:],
        templates=tuple(template for template, _ in plan),
    )


def lone(name, *lengths):
    return [(f"{name} {number}", length) for number, length in enumerate(lengths)]


ROWS = {
    "shorter than the ranking": (lone("r", *[9] * 12), lone("s", *[5] * 12), lone("t", *[5] * 12)),
    "longer than the ranking": (lone("r", *[5] * 12), lone("s", *[9] * 12), lone("t", *[9] * 12)),
    "one long row": (
        lone("r", *[6] * 20),
        lone("s", *[6] * 11, 13, *[6] * 8),
        lone("t", *[6] * 20),
    ),
    "mixed": (lone("r", 5, 8, 6), lone("s", 7, 4, 10, 5, 6, 9), lone("t", 12, 4, 4)),
}


@pytest.mark.parametrize("plans", ROWS.values(), ids=ROWS)
def test_rows_without_a_template_are_ranked_sized_and_measured_on_themselves(plans):
    model = make_tiny_model()
    prompts = TaskPrompts(*(rows_of(model, plan, seed) for seed, plan in enumerate(plans)))
    found = discover(model, TASK, DiscoverConfig(**CONFIG), prompts=prompts)
    found = found.circuits["attention_edge"]
    assert found.measured_on == "sizing"
    assert set(found.circuit.attention_edges) == set(prompts.sizing.templates)
    assert found.faithfulness >= 0.8
    check(model, prompts, found)


SPLITS = {
    "a ranked one is not sized": ("aabb", "aacc", "aabc"),
    "one is neither ranked nor reported": ("aaa", "abbb", "aaaa"),
    "only some are reported on": ("aab", "bbbcc", "acdd"),
}
LENGTHS = {"a": 6, "b": 9, "c": 4, "d": 12}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_templates_that_are_split_unevenly_are_measured_at_their_own_positions(split):
    model = make_tiny_model()
    prompts = TaskPrompts(
        *(
            rows_of(model, [(name, LENGTHS[name]) for name in 3 * names], seed)
            for seed, names in enumerate(split)
        )
    )
    found = discover(model, TASK, DiscoverConfig(**CONFIG), prompts=prompts)
    found = found.circuits["attention_edge"]
    known = set(prompts.sizing.templates)
    assert found.measured_on == "reporting"
    assert found.n_measured == sum(name in known for name in prompts.reporting.templates)
    check(model, prompts, found)


@pytest.mark.parametrize("n", [3, 8])
def test_few_prompts_of_ioi_are_measured_at_their_own_positions(n):
    model, task = load_model("dense"), get_task("ioi")
    prompts = task.build(tokenizer_of(model), n_ranking=n, n_sizing=n, n_reporting=n)
    config = DiscoverConfig(granularities=("attention_edge",), n_prompts=n)
    found = discover(model, task, config).circuits["attention_edge"]
    check(model, prompts, found)
    assert found.faithfulness_sizing >= 0.9
