"""Two-digit addition: where a dense model and its sparse twin look for each digit of the sum.

    python analyses/addition.py --out docs/addition

The toy experiment of arXiv 2512.05865 (Figure 1), in a model of one layer: there an attention edge
is the only way from a digit to the answer, so what a head looks at is what the answer can depend
on. A sum is ten tokens, `; 3 7 + 4 5 = 0 8 2`. The answer is written as it is read, highest digit
first. Written the other way round, a carry could be read off the digit before (it is smaller than
either digit that it is the sum of); this way it has to be fetched from the digits that make it.

Of the 5050 unordered pairs of numbers a fifth is kept for the final measurements and two tenths
are held out for post-training. Both orders of a pair are on one side, so no sum that is measured
was ever seen. Writes `models.csv` (how good, how sparse), `attention.csv` (where each head looks
for each digit), `ablation.csv` (which digits of the answer need those edges) and `gate.csv` (which
digits a head's gate opens for) into DIR.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from circuits.figures import patterns_figure
from circuits.files import write_text
from circuits.gate.gate import is_gated
from circuits.models.load import new_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.train import evaluate, evaluate_ce, post_train

if TYPE_CHECKING:
    from circuits.models.backend import Model

PLUS, EQUALS, START = 10, 11, 12
TOKENS = (*"0123456789", "+", "=", ";")
SLOTS = ("start", "a tens", "a units", "+", "b tens", "b units", "=", "hundreds", "tens", "units")
OPERANDS = [0, 1, 3, 4]  # positions that are followed by a digit nobody can know
ANSWER_FROM = 6  # the position whose logits give the first digit of the answer
DIGITS = ("hundreds", "tens", "units")
SOURCES = {"tens digits": [1, 4], "units digits": [2, 5], "elsewhere": [0, 3, 6, 7, 8, 9]}
ROLES = {
    "hundreds": {"tens digits": "carry", "units digits": "carry"},
    "tens": {"tens digits": "added", "units digits": "carry"},
    "units": {"units digits": "added"},
}
SHARES = {"test": 0.2, "control": 0.1, "selection": 0.1}
DENSE_STEPS, DENSE_BATCH = 3000, 128
RECIPE = TrainConfig(
    steps=1500,
    batch_size=128,
    learning_rate=1e-3,
    penalty="mean",
    edge_weight=1.0,
    control_sequences=512,
    selection_sequences=2000,
    lambda_rate=5.0,
    slack=0.003,
    margin=0.0,
)


class Sums:
    """All two-digit sums, cut into train, control, selection and test by unordered pairs."""

    context = len(SLOTS)

    def __init__(self, seed: int) -> None:
        """Draws the cut."""
        self._seed = seed
        pairs = torch.combinations(torch.arange(100), with_replacement=True)
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
        self._parts: dict[str, Tensor] = {}
        start = 0
        for part, share in SHARES.items():
            end = start + round(share * len(pairs))
            self._parts[part] = self._rows(pairs[start:end])
            start = end
        self._parts["train"] = self._rows(pairs[start:])

    def _rows(self, pairs: Int[Tensor, "pair 2"]) -> Int[Tensor, "sum 10"]:
        """The sums of the pairs in both orders, in random order."""
        both = torch.cat([pairs, pairs[pairs[:, 0] != pairs[:, 1]].flip(1)])
        generator = torch.Generator().manual_seed(self._seed)
        a, b = both[torch.randperm(len(both), generator=generator)].unbind(1)
        total = a + b
        start, plus, equals = (torch.full_like(a, token) for token in (START, PLUS, EQUALS))
        answer = (total // 100, total // 10 % 10, total % 10)
        columns = (start, a // 10, a % 10, plus, b // 10, b % 10, equals, *answer)
        return torch.stack(columns, dim=1)

    def batch(self, step: int, batch_size: int) -> Int[Tensor, "batch pos"]:
        """Returns the training batch of this step."""
        rows = self._parts["train"]
        generator = torch.Generator().manual_seed(self._seed * 10**6 + step)
        return rows[torch.randint(len(rows), (batch_size,), generator=generator)]

    def held_out(self, part: str, n_sequences: int) -> Int[Tensor, "batch pos"]:
        """Returns sums of a part that training does not see."""
        return self._parts[part][:n_sequences]

    def describe(self) -> dict[str, Any]:
        """Returns what decides the sums."""
        return {"kind": "two-digit sums", "seed": self._seed, "shares": SHARES}


def train_dense(sums: Sums, seed: int) -> Model:
    """Returns a model of one layer that adds.

    Operand digits are taught as the uniform distribution. Their plain cross-entropy would teach
    which pairs are held out; the twin, which sees no reason to look at them, would be better on
    held-out text by forgetting that, and could spend the gain on wrong answers.
    """
    torch.manual_seed(seed)
    model = new_model(
        {
            "n_layers": 1,
            "n_heads": 4,
            "d_model": 64,
            "d_head": 16,
            "d_mlp": 256,
            "d_vocab": len(TOKENS),
            "n_ctx": len(SLOTS),
            "act_fn": "gelu",
            "normalization_type": "LN",
            "device": "cpu",
        }
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=DENSE_STEPS, pct_start=0.1
    )
    uniform = torch.zeros(len(TOKENS))
    uniform[:10] = 0.1
    for step in track(range(DENSE_STEPS), description="dense"):
        tokens = sums.batch(step, DENSE_BATCH)
        targets = F.one_hot(tokens[:, 1:], len(TOKENS)).float()
        targets[:, OPERANDS] = uniform
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), targets.flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def is_right(
    logits: Float[Tensor, "batch pos d_vocab"], rows: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch digit"]:
    """Returns 1 for each digit of the answer that is right, given the right ones before it."""
    answer = slice(ANSWER_FROM, ANSWER_FROM + len(DIGITS))
    return (logits[:, answer].argmax(dim=-1) == rows[:, ANSWER_FROM + 1 :]).float()


@torch.no_grad()
def patterns_of(
    model: Model, rows: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch head query key"]:
    """Returns the attention patterns after the gate."""
    _, cache = model.run_with_cache(rows)
    return cache["blocks.0.attn.hook_pattern"]


@torch.no_grad()
def quality(model: Model, rows: Int[Tensor, "batch pos"]) -> dict[str, float]:
    """Returns accuracy, cross-entropy of the answer and of everything, and density."""
    logits = model(rows)
    answer = logits[:, ANSWER_FROM:-1].flatten(0, 1)
    right = is_right(logits, rows)
    ce, density = evaluate_ce(model, rows), 1.0
    if is_gated(model):
        ce, measured = evaluate(model, rows)
        density = measured.overall
    n_open = (patterns_of(model, rows) > 0).float().mean(dim=0).sum(dim=(0, 2))  # [query]
    return {
        "sums": len(rows),
        "accuracy": right.all(dim=1).float().mean().item(),
        **dict(zip(DIGITS, right.mean(dim=0).tolist(), strict=True)),
        "ce_answer": F.cross_entropy(answer, rows[:, ANSWER_FROM + 1 :].flatten()).item(),
        "ce": ce,
        "density": density,
        "open_edges": n_open.sum().item(),
        "open_at_answer": n_open[ANSWER_FROM:-1].sum().item(),
    }


@torch.no_grad()
def attention_rows(model: Model, rows: Int[Tensor, "batch pos"]) -> list[dict[str, object]]:
    """Returns for each answer digit, head and kind of source: attention and open edges."""
    pattern = patterns_of(model, rows)
    table = []
    for number, digit in enumerate(DIGITS):
        query = ANSWER_FROM + number
        attention = pattern[:, :, query].mean(dim=0)  # [head, key]
        n_open = (pattern[:, :, query] > 0).float().mean(dim=0)
        for head in range(model.cfg.n_heads):
            total = attention[head].sum().item()
            for source, keys in SOURCES.items():
                mass = attention[head, keys].sum().item()
                table.append(
                    {
                        "digit": digit,
                        "head": f"a0.h{head}",
                        "source": source,
                        "role": ROLES[digit].get(source, "neither"),
                        "attention": mass,
                        "share": mass / total if total else float("nan"),
                        "open_edges": n_open[head, keys].sum().item(),
                    }
                )
    return table


@torch.no_grad()
def gate_rows(model: Model, rows: Int[Tensor, "batch pos"]) -> list[dict[str, object]]:
    """Returns how often the edges to a column's digits are open, for each value of the digit.

    Heads without an open edge to that column are left out.
    """
    is_open = (patterns_of(model, rows) > 0).float()
    table = []
    for number, digit in enumerate(DIGITS):
        for head in range(model.cfg.n_heads):
            for source in ROLES[digit]:
                keys = SOURCES[source]
                opened = is_open[:, head, ANSWER_FROM + number, keys]
                if not opened.any():
                    continue
                shares = {str(n): opened[rows[:, keys] == n].mean().item() for n in range(10)}
                table.append({"digit": digit, "head": f"a0.h{head}", "source": source, **shares})
    return table


@torch.no_grad()
def ablation_rows(model: Model, rows: Int[Tensor, "batch pos"]) -> list[dict[str, object]]:
    """Returns how often each digit is right when edges carry their mean over all sums instead.

    What a head reads along an edge is A_ij v_j; at one answer position, all heads read the mean
    of it from one kind of source and the real thing from the others.
    """
    _, cache = model.run_with_cache(rows)
    pattern, value = (cache[f"blocks.0.attn.hook_{name}"] for name in ("pattern", "v"))
    table = []
    for number, digit in enumerate(DIGITS):
        query = ANSWER_FROM + number
        for source, keys in SOURCES.items():
            read = torch.einsum("bhk,bkhd->bhd", pattern[:, :, query, keys], value[:, keys])
            change = read.mean(dim=0) - read

            def read_the_mean(
                z: Tensor, hook: object, query: int = query, change: Tensor = change
            ) -> Tensor:
                z[:, query] += change
                return z

            logits = model.run_with_hooks(rows, fwd_hooks=[("blocks.0.attn.hook_z", read_the_mean)])
            table.append(
                {
                    "digit": digit,
                    "source": source,
                    "role": ROLES[digit].get(source, "neither"),
                    "accuracy": is_right(logits, rows)[:, number].mean().item(),
                }
            )
    return table


def main() -> None:
    """Reads the command line, trains both models and writes tables and figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--figures", type=Path, help="folder for the figures as HTML, 5 MB each")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of both trainings")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    sums = Sums(arguments.seed)
    test = sums.held_out("test", 10**6)
    dense = train_dense(sums, arguments.seed)
    with tempfile.TemporaryDirectory() as run:
        # It does not come from a Hugging Face model and is not saved: all of it can be trained.
        result = post_train(dense, sums, RECIPE, run, frozen=())
    print(f"CE {result.ce:.4f}, bound {result.tau:.4f}, kept: {result.satisfied}")
    models = {"dense": dense, "sparse": result.model}
    tables: dict[str, list[dict[str, object]]] = {"models": [], "attention": [], "ablation": []}
    for side, model in models.items():
        tables["models"].append({"model": side, **quality(model, test)})
        tables["attention"] += [{"model": side, **row} for row in attention_rows(model, test)]
        tables["ablation"] += [{"model": side, **row} for row in ablation_rows(model, test)]
    tables["gate"] = gate_rows(result.model, test)
    for name, table in tables.items():
        frame = pd.DataFrame(table).round(4)
        print(frame.to_string(index=False))
        write_text(arguments.out / f"{name}.csv", frame.to_csv(index=False))
    if arguments.figures is not None:
        write_figures(models, test, arguments.figures)
    print(f"{time.perf_counter() - started:.0f} seconds")


def write_figures(models: dict[str, Model], test: Int[Tensor, "batch pos"], folder: Path) -> None:
    """Writes the patterns on one sum, and their mean over all."""
    folder.mkdir(parents=True, exist_ok=True)
    # An unseen sum with a carry in both columns.
    carries = test[(test[:, 2] + test[:, 5] >= 10) & (test[:, 7] == 1)][:1]
    shown = {
        "one_sum": ([TOKENS[token] for token in carries[0].tolist()], carries),
        "mean": (SLOTS, test),
    }
    for name, (labels, rows) in shown.items():
        patterns = [patterns_of(model, rows).mean(dim=0)[None] for model in models.values()]
        figure = patterns_figure(labels, *patterns)
        figure.write_html(folder / f"{name}.html")


if __name__ == "__main__":
    main()
