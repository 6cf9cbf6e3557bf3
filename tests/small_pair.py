"""A dense model and a sparse one that are small, and do two of the tasks.

The embedded pair takes six times as long to compare. It stands where a test is about that pair;
where any two models that do the task would serve, these do.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuits.gate.card import GateCard
from circuits.gate.gate import add_gate
from circuits.models.load import load_model, tokenizer_of
from circuits.models.saving import save_model
from circuits.tasks import get_task

TASKS = ("pronoun", "subject_verb")
BIAS = 0.5


@dataclass(frozen=True)
class SmallPair:
    """The folders of the two models; they have the tokenizer of the embedded ones."""

    dense: Path
    sparse: Path


def make_small_pair(folder: Path) -> SmallPair:
    """Teaches a GPT-2 of 2 layers and 4 heads the answers of `TASKS`; the same weights each time.

    The sparse model has the weights of the dense one: its gate shuts a part of the edges that the
    tasks can do without.
    """
    tokenizer = tokenizer_of(load_model("dense"))
    ids: Any = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4,
                initializer_range=0.06, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=ids["bos"], eos_token_id=ids["eos"],
                pad_token_id=ids["pad"],
            )
        )  # fmt: skip
        examples = [get_task(name).draw(tokenizer, 200, seed=7)[0] for name in TASKS]
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            optimizer.zero_grad()
            for prompts in examples:
                rows = torch.randint(len(prompts), (16,))
                logits = model(prompts.clean[rows]).logits[range(16), prompts.lengths[rows] - 1]
                torch.nn.functional.cross_entropy(logits, prompts.answers[rows, 0]).backward()
            optimizer.step()
    model.eval().save_pretrained(folder / "taught")
    tokenizer.save_pretrained(folder / "taught")
    dense = load_model(folder / "taught")
    sparse = add_gate(copy.deepcopy(dense), BIAS)
    save_model(sparse, folder / "sparse", gate=GateCard(bias=BIAS))
    return SmallPair(folder / "taught", folder / "sparse")
