"""Sparse post-training on real text: a small language model of Python's own source code.

    python analyses/real_text.py --out real_text

The standard library lies wherever Python does. A byte-level BPE tokenizer and a small GPT-2 are
trained on it from scratch, then post-trained by `circuits.sparsify`, and three models are compared
with it on held-out files: the dense model; the dense model trained on for as many steps without a
gate (so that what more training gives is not taken for an effect of sparsity); and naive top-k
attention on both, which keeps the k highest scores of every query. Writes `OUT/real_text.csv`: CE
in nats per token and density at the context it was trained with; and `OUT/real_text_run.csv`, the
same of the states that post-training passed through.

Then the circuits of all three are compared on a behaviour that code has: an opening bracket must be
closed by its own kind. Every part that is done is kept, so an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer
from transformer_lens import HookedTransformer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits.cli import main as circuits
from circuits.files import write_text
from circuits.models import load_model, versions
from circuits.saving import frozen_parameters, save_model
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import TokenStream
from circuits.sparsify.dataset_stream import DatasetStream
from circuits.sparsify.evaluation import evaluate, evaluate_ce
from circuits.sparsify.train import TrainResult, post_train
from circuits.top_k import add_top_k

LEFT_OUT = ("site-packages", "test", "tests", "idle_test", "__pycache__")
VOCABULARY = 2048
CONTEXT = 256
TOP_K = (1, 2, 4, 8, 16, 32, 64)
HELD_OUT_FRACTION = 0.06
BEFORE = (
    "    if",
    "    return",
    "    x =",
    "    for item in",
    "    self.value =",
    "    print(x, y)\n    z =",
)
CALLED = "data args items values names lines result key value list dict path self line item".split()
GIVEN = "name key value index i n x line path item self node result data k size count text".split()
SELECTION_SEQUENCES = 128


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


def new_dense(tokenizer: PreTrainedTokenizerFast, folder: Path) -> HookedTransformer:
    """Returns an untrained model, loaded as users load theirs."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        initializer_range=0.05,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


def trained(
    model: HookedTransformer, stream: TokenStream, recipe: TrainConfig, run: Path
) -> TrainResult:
    """Returns what the training of a model comes to; a run that has begun goes on."""
    frozen = frozen_parameters(model)
    return post_train(model, stream, recipe, run, frozen=frozen, resume=run.is_dir())


def write_brackets(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Writes prompt pairs that end in an open `[` (clean) or `(` (corrupted): what closes it?"""

    def is_token(text: str) -> bool:
        return len(tokenizer.encode(text, add_special_tokens=False)) == 1

    called = [name for name in CALLED if is_token(f" {name}")]
    given = [name for name in GIVEN if is_token(name)]
    rows = [
        {
            "clean": before + f" {function}[{argument}",
            "corrupted": before + f" {function}({argument}",
            "answer": "]",
            "wrong_answer": ")",
            "template": str(number),
        }
        for number, before in enumerate(BEFORE)
        for function in called
        for argument in given
    ]
    random.Random(0).shuffle(rows)
    write_text(path, pd.DataFrame(rows).to_csv(index=False))


def main() -> None:
    """Reads the command line, trains what is not yet there and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dense-steps", type=int, default=3000)
    parser.add_argument("--sparse-steps", type=int, default=1500)
    parser.add_argument("--slack", type=float, default=0.0, help="nats above the dense CE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums are added in another order with more.
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    corpus = out / "corpus.jsonl"
    if not corpus.is_file():
        write_corpus(corpus)

    def stream_for(model: HookedTransformer) -> DatasetStream:
        return DatasetStream(
            str(corpus),
            model.tokenizer,
            context=CONTEXT,
            held_out_fraction=HELD_OUT_FRACTION,
        )

    if (out / "dense").is_dir():
        dense = load_model(out / "dense")
    else:
        run = out / "dense.run"
        if run.is_dir():
            untrained = load_model(out / "untrained")
        else:
            untrained = new_dense(train_tokenizer(corpus), out / "untrained")
        recipe = TrainConfig(
            gate=False,
            steps=arguments.dense_steps,
            batch_size=16,
            learning_rate=3e-3,
            beta2=0.98,
            weight_decay=0.05,
        )
        dense = trained(untrained, stream_for(untrained), recipe, run).model
        save_model(dense, out / "dense")
    stream = stream_for(dense)
    recipe = TrainConfig(
        steps=arguments.sparse_steps,
        batch_size=16,
        learning_rate=1.5e-3,
        penalty="rms",
        edge_weight=8.0,
        lambda_rate=2.0,
        slack=arguments.slack,
        selection_sequences=SELECTION_SEQUENCES,
    )
    if (out / "control").is_dir():
        control = load_model(out / "control")
    else:
        control = trained(dense, stream, replace(recipe, gate=False), out / "control.run").model
        save_model(control, out / "control")
    result = trained(dense, stream, recipe, out / "sparse.run")
    save_model(result.model, out / "sparse", gate=result.card())

    tokens = stream.held_out("selection", SELECTION_SEQUENCES)
    rows = [
        {"model": "dense", "ce": evaluate_ce(dense, tokens), "density": 1.0},
        {"model": "dense, trained on", "ce": evaluate_ce(control, tokens), "density": 1.0},
        {"model": "sparse", "ce": result.ce, "density": result.density.overall},
    ]
    for name, folder in (("dense", "dense"), ("dense, trained on", "control")):
        for k in TOP_K:
            ce, density = evaluate(add_top_k(load_model(out / folder), k), tokens)
            rows.append({"model": f"{name}, top {k}", "ce": ce, "density": density.overall})
    table = pd.DataFrame(rows).assign(
        context=CONTEXT, sequences=len(tokens), satisfied=result.satisfied, **versions()
    )
    Console().print(table.iloc[:, :3].to_string(index=False))
    write_text(out / "real_text.csv", table.to_csv(index=False))
    log = pd.read_json(out / "sparse.run" / "log.jsonl", lines=True)
    batches = log["sampled_ce"].rolling(recipe.evaluate_every)
    log["batch_ce_low"], log["batch_ce_high"] = batches.min(), batches.max()
    shown = ["step", "ce", "tau", "density", "control_ce", "lambda", "batch_ce_low"]
    states = log.dropna(subset=["ce"])[[*shown, "batch_ce_high"]]
    write_text(out / "real_text_run.csv", states.to_csv(index=False))
    write_brackets(dense.tokenizer, out / "brackets.csv")
    models = ["--dense", str(out / "dense"), "--sparse", str(out / "sparse")]
    others = ["--model", f"dense-finetuned={out / 'control'}"]
    task = ["--task", str(out / "brackets.csv"), "--out", str(out / "compare")]
    raise SystemExit(circuits(["compare", *models, *others, *task]))


if __name__ == "__main__":
    main()
