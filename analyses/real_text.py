"""Sparse post-training on real text: a small language model of Python's own source code.

    python analyses/real_text.py --out real_text

The standard library lies wherever Python does. A byte-level BPE tokenizer and a small GPT-2 are
trained on it from scratch, then post-trained by `circuits.sparsify`, and three models are compared
with it on held-out files: the dense model; the dense model trained on for as many steps without a
gate (so that what more training gives is not taken for an effect of sparsity); and naive top-k
attention on both, which keeps the k highest scores of every query. Writes `OUT/real_text.csv`: CE
in nats per token and density at the context it was trained with, on held-out sequences that no step
was taken on, no lambda moved by and no state chosen by; and `OUT/real_text_run.csv`, the states
that post-training passed through, on those that they are chosen by.

Then the circuits of all three are compared on a behaviour that code has: an opening bracket must be
closed by its own kind. Every part that is done is kept, so an interrupted call goes on, and several
calls with `--only` can share the training of what is compared with the dense model.
`--embed circuits/assets` puts the pair among the embedded models, as `code-dense` and
`code-sparse`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits.cli import main as circuits
from circuits.discovery.resample import resample_templates
from circuits.files import write_text
from circuits.gate.top_k import add_top_k
from circuits.models.backend import Model
from circuits.models.load import load_model, tokenizer_of, versions
from circuits.models.saving import frozen_parameters, save_model
from circuits.results.intervals import interval
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.dataset_stream import DatasetStream
from circuits.sparsify.evaluation import evaluate
from circuits.sparsify.train import TrainResult, post_train

LEFT_OUT = ("site-packages", "test", "tests", "idle_test", "__pycache__")
VOCABULARY = 2048
CONTEXT = 256
TOP_K = (1, 2, 4, 8, 16, 32, 64)
HELD_OUT_FRACTION = 0.1
SLACKS = {"sparse": 0.0, "sparse-slack-0.1": 0.1}  # nats above the dense model's cross-entropy
CONTROL_SEQUENCES, SELECTION_SEQUENCES = 128, 256


def write_corpus(path: Path) -> None:
    """Writes every source file of the standard library as one document."""
    root = Path(sysconfig.get_paths()["stdlib"])
    lines = []
    for file in sorted(root.rglob("*.py")):
        if not set(file.relative_to(root).parts) & set(LEFT_OUT):
            text = file.read_text(encoding="utf-8", errors="ignore")
            lines.append(json.dumps({"text": text}))
    write_text(path, "\n".join(lines) + "\n")


def train_tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of the corpus."""
    texts = (json.loads(line)["text"] for line in corpus.read_text().splitlines())
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )


def new_dense(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    context: int = CONTEXT,
    width: int = 128,
    heads: int = 4,
    spread: float = 0.05,
) -> Model:
    """Returns an untrained model of 4 layers, loaded as users load theirs."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=4,
        n_head=heads,
        initializer_range=spread,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=cast("int", tokenizer.bos_token_id),
        eos_token_id=cast("int", tokenizer.eos_token_id),
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


def trained(model: Model, stream: TokenStream, recipe: TrainConfig, run: Path) -> TrainResult:
    """Returns what the training of a model comes to; a run that has begun goes on."""
    frozen = frozen_parameters(model)
    return post_train(model, stream, recipe, run, frozen=frozen, resume=run.is_dir())


def unseen(stream: DatasetStream, separator: int) -> tuple[Int[Tensor, "batch pos"], list[str]]:
    """Returns the held-out sequences that chose no state, and the file that each ends in."""
    tokens = stream.held_out("selection", 10**6)
    files = (tokens == separator).sum(dim=1).cumsum(dim=0)
    chosen_by = set(map(tuple, stream.held_out("selection", SELECTION_SEQUENCES).tolist()))
    kept = [i for i, row in enumerate(tokens.tolist()) if tuple(row) not in chosen_by]
    return tokens[kept], [str(file) for file in files[kept].tolist()]


def measured(
    name: str, model: Model, tokens: Int[Tensor, "batch pos"]
) -> tuple[dict[str, Any], Float[Tensor, " batch"]]:
    """Returns a model's row of the table, and its CE on each sequence."""
    each = [evaluate(model, row[None]) for row in tokens]
    ces = torch.tensor([ce for ce, _ in each], dtype=torch.float64)
    density = sum(density.overall for _, density in each) / len(each)
    return {"model": name, "ce": ces.mean().item(), "density": density}, ces


def comparison(
    models: dict[str, Model], tokens: Int[Tensor, "batch pos"], files: list[str]
) -> pd.DataFrame:
    """Returns a row for each model, with its difference to the first one and an interval of it.

    Whole files are drawn for the interval, since the sequences of one are like each other.
    """
    drawn = resample_templates(files, seed=0).weights
    rows, first = [], None
    for name, model in track(models.items(), "measuring"):
        row, ces = measured(name, model, tokens)
        first = ces if first is None else first
        low, high = interval(drawn @ (ces - first) / drawn.sum(dim=1))
        rows.append(row | {"difference": (ces - first).mean().item(), "low": low, "high": high})
    return pd.DataFrame(rows).assign(context=CONTEXT, sequences=len(tokens), files=len(set(files)))


def states(run: Path, every: int) -> pd.DataFrame:
    """Returns the states that a run was evaluated at, and how single batches swing before each."""
    log = pd.read_json(run / "log.jsonl", lines=True)
    batches = log["sampled_ce"].rolling(every)
    log["batch_ce_low"], log["batch_ce_high"] = batches.min(), batches.max()
    shown = ["step", "ce", "tau", "density", "control_ce", "control_tau", "lambda"]
    return log.dropna(subset=["ce"]).filter([*shown, "batch_ce_low", "batch_ce_high"])


def stream_for(model: Model, corpus: Path) -> DatasetStream:
    """Returns the corpus in the model's tokens."""
    return DatasetStream(
        str(corpus), tokenizer_of(model), context=CONTEXT, held_out_fraction=HELD_OUT_FRACTION
    )


def dense_model(out: Path, corpus: Path, steps: int) -> Model:
    """Returns the dense model, which is trained if it is not there yet."""
    if (out / "dense").is_dir():
        return load_model(out / "dense")
    run = out / "dense.run"
    if run.is_dir():
        untrained = load_model(out / "untrained")
    else:
        untrained = new_dense(train_tokenizer(corpus), out / "untrained")
    recipe = TrainConfig(
        gate=False,
        steps=steps,
        batch_size=16,
        learning_rate=3e-3,
        beta2=0.98,
        weight_decay=0.05,
    )
    dense = trained(untrained, stream_for(untrained, corpus), recipe, run).model
    save_model(dense, out / "dense")
    return dense


def main() -> None:
    """Reads the command line, trains what is not yet there and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dense-steps", type=int, default=3000)
    parser.add_argument("--sparse-steps", type=int, default=2500)
    parser.add_argument("--only", choices=[*SLACKS, "control"], help="train this one and stop")
    parser.add_argument("--embed", type=Path, help="folder of embedded models to add the pair to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums are added in another order with more.
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    corpus = out / "corpus.jsonl"
    if not corpus.is_file():
        write_corpus(corpus)
    dense = dense_model(out, corpus, arguments.dense_steps)
    stream = stream_for(dense, corpus)
    recipe = TrainConfig(
        steps=arguments.sparse_steps,
        batch_size=16,
        learning_rate=1.5e-3,
        penalty="rms",
        edge_weight=8.0,
        # While the learning rate is high, CE is above the bound without any gate, and lambda would
        # stand at its clamp for it: let it follow when most of that is over.
        lambda_start=3.0,
        lambda_warm_up=0.8,
        lambda_rate=4.0,
        control_every=20,
        control_sequences=CONTROL_SEQUENCES,
        selection_sequences=SELECTION_SEQUENCES,
    )
    recipes = {name: replace(recipe, slack=slack) for name, slack in SLACKS.items()}
    recipes["control"] = replace(recipe, gate=False)
    for name in [arguments.only] if arguments.only else recipes:
        if not (out / name).is_dir():
            result = trained(dense, stream, recipes[name], out / f"{name}.run")
            save_model(result.model, out / name, gate=result.card() if result.config.gate else None)
    if arguments.only:
        return
    if arguments.embed is not None:
        for side in ("dense", "sparse"):
            shutil.copytree(out / side, arguments.embed / f"code-{side}", dirs_exist_ok=True)

    names = {"dense": "dense", "dense, trained on": "control"}
    folders = names | {name: name for name in SLACKS}
    models = {name: load_model(out / folder) for name, folder in folders.items()}
    for name, folder in names.items():
        for k in TOP_K:
            models[f"{name}, top {k}"] = add_top_k(load_model(out / folder), k)
    table = comparison(models, *unseen(stream, cast("int", tokenizer_of(dense).bos_token_id)))
    Console().print(table.iloc[:, :6].to_string(index=False))
    table = table.assign(heads=dense.cfg.n_layers * dense.cfg.n_heads, **versions())
    write_text(out / "real_text.csv", table.to_csv(index=False))
    passed = states(out / "sparse.run", recipe.evaluate_every)
    write_text(out / "real_text_run.csv", passed.to_csv(index=False))
    pair = ["--dense", str(out / "dense"), "--sparse", str(out / "sparse")]
    others = ["--model", f"dense-finetuned={out / 'control'}"]
    task = ["--task", "brackets", "--out", str(out / "compare")]
    raise SystemExit(circuits(["compare", *pair, *others, *task]))


if __name__ == "__main__":
    main()
