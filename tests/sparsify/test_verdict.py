"""What is said about a run: text that cannot be read, twins that are not a success."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits import load_model
from circuits.cli import main
from circuits.gate.density import Density
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.result import TrainResult
from circuits.sparsify.train import post_train
from circuits.sparsify.verdict import (
    BoundWatch,
    check_readable,
    is_attention_free,
    unknown_share,
)
from circuits.tasks.corpus import corpus_tokenizer
from tests.helpers import CountingStream, make_taught_model, make_tiny_model, word_tokenizer

CONTEXT = 16
TOKENIZER = corpus_tokenizer(context=CONTEXT)


def make_config(**changes: Any) -> TrainConfig:
    small: dict[str, Any] = {
        "steps": 2,
        "batch_size": 2,
        "evaluate_every": 1,
        "control_every": 1,
        "control_sequences": 2,
        "selection_sequences": 4,
    }
    return TrainConfig(**(small | changes))


def make_result(**changes: Any) -> TrainResult:
    values = {
        "model": make_tiny_model(),
        "satisfied": True,
        "ce": 2.0,
        "dense_ce": 2.0,
        "tau": 2.0,
        "slack": 0.0,
        "density": Density(torch.full((2, 2), 0.01), 128),
        "best_step": 2,
        "steps": 2,
        "seconds": 1.0,
        "data": {},
        "config": TrainConfig(),
    }
    return TrainResult(**(values | changes))


def test_unknown_tokens_are_counted() -> None:
    tokens = torch.tensor(TOKENIZER("Alice saw the zyx and gave zyx to")["input_ids"])[None]
    assert unknown_share(tokens, TOKENIZER) == pytest.approx(3 / 8)  # "saw" is not a word of it
    assert unknown_share(tokens, None) is None
    assert unknown_share(tokens, word_tokenizer(["a"])) is None  # its token also ends documents


def test_worse_than_guessing_is_refused_with_both_numbers() -> None:
    tokens = torch.tensor([[2, 2, 2, 7]])
    with pytest.raises(
        ValueError,
        match=r"cross-entropy on the 4 held-out tokens, of which 75 % are unknown to the "
        r"tokenizer, is 12.6700 nats, above the ln\(320\) = 5.7683 of guessing",
    ):
        check_readable(12.67, 320, tokens, TOKENIZER)
    with pytest.raises(ValueError, match=r"the 4 held-out tokens is 12.6700 nats"):
        check_readable(12.67, 320, tokens, None)


def test_many_unknown_tokens_are_warned_of_and_few_are_not() -> None:
    tokens = torch.full((1, 100), 7)
    tokens[0, :5] = 2
    assert check_readable(1.0, 320, tokens, TOKENIZER) is None
    tokens[0, 5] = 2
    assert "6 % of the text's held-out tokens are unknown" in str(
        check_readable(1.0, 320, tokens, TOKENIZER)
    )


@pytest.mark.parametrize("gate", [True, False], ids=["twin", "control"])
def test_text_that_the_model_cannot_read_is_refused_before_anything_is_written(
    tmp_path: Path, gate: bool
) -> None:
    model, stream = make_tiny_model(), CountingStream()
    with pytest.raises(ValueError, match=r"cannot read this text: .* above the ln\(30\) = 3.4012"):
        post_train(model, stream, make_config(gate=gate), tmp_path / "run", frozen=())
    assert not (tmp_path / "run").exists()


def test_the_command_refuses_text_that_the_tokenizer_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"zyx{n} qwv lorem{n} ipsum dolor; sit amet?" * 9 for n in range(60))
    )
    code = main(
        ["train", "--text", str(text), "--out", str(tmp_path / "run"), "--context", "16",
         "--steps", "1", "--batch-size", "2"]
    )  # fmt: skip
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    assert "the dense model cannot read this text" in said
    assert f"= {math.log(load_model('dense').cfg.d_vocab):.4f} of guessing" in said
    assert "% are unknown to the tokenizer" in said
    assert not (tmp_path / "run").exists()


class HalfUnknown(CorpusStream):
    """The corpus, every second token unknown."""

    def _rows(self, part: str, step: int, n_rows: int) -> Tensor:
        rows = super()._rows(part, step, n_rows)
        rows[:, ::2] = TOKENIZER.get_vocab()[str(TOKENIZER.unk_token)]
        return rows


def test_unknown_words_are_warned_of_at_once_and_in_the_result(tmp_path: Path) -> None:
    stream = HalfUnknown(TOKENIZER, context=CONTEXT)
    model = make_taught_model(stream, tokenizer=TOKENIZER)
    message = "50 % of the text's held-out tokens are unknown to the tokenizer"
    with pytest.warns(UserWarning, match=message):
        result = post_train(
            model, stream, make_config(slack=10.0), tmp_path / "run", frozen=(), progress=False
        )
    assert result.warnings[0].startswith(message)
    written = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert written["warnings"] == list(result.warnings)
    assert result.card().training["warnings"] == list(result.warnings)


@pytest.mark.parametrize(
    ("density", "context", "free"),
    [
        (0.0, 128, True),
        (4e-5, 128, True),  # 0.01 edges a token in 4 heads
        (6e-5, 128, False),
        (1e-3, 128, False),
        (4e-5, 16384, False),  # 1.3 edges a token
    ],
)
def test_a_model_without_attention_is_known(density: float, context: int, free: bool) -> None:
    assert is_attention_free(Density(torch.full((2, 2), density), context)) == free


def test_a_success_has_nothing_to_be_said_against_it() -> None:
    result = make_result()
    assert (result.failures, result.warnings) == ((), ())


def test_a_twin_without_attention_is_a_failure() -> None:
    (reason,) = make_result(density=Density(torch.zeros(2, 2), 128)).failures
    assert reason.startswith("0 % of attention edges are open: this model does without attention")


def test_a_broken_bound_is_a_failure() -> None:
    (reason,) = make_result(satisfied=False, ce=2.5).failures
    assert reason.startswith("no state kept the bound CE <= 2.0000")


@pytest.mark.parametrize(
    ("ce", "tau", "warns"),
    [
        (0.0, 2.0, True),
        (1.89, 2.0, True),
        (1.91, 2.0, False),
        (1.95, 3.0, False),  # far under a wide bound, but not under the dense model
        (1.55, 1.6, False),  # far under the dense model, as the bound asked for
        (1.45, 1.6, True),
    ],
)
def test_a_twin_far_under_its_bound_is_warned_of(ce: float, tau: float, warns: bool) -> None:
    result = make_result(ce=ce, tau=tau)
    assert not result.failures
    assert len(result.warnings) == warns
    if warns:
        assert f"CE is {2 - ce:.2f} nats under the dense model's" in result.warnings[0]
        assert "train a control by the same recipe (--control)" in result.warnings[0]


def test_a_control_has_no_bound_to_fail() -> None:
    config = TrainConfig(gate=False)
    result = make_result(
        ce=0.0, tau=math.inf, density=Density(torch.ones(2, 2), 128), config=config
    )
    assert (result.failures, result.warnings) == ((), ())
    assert json.dumps(result.summary(), allow_nan=False)


def test_the_card_and_the_summary_carry_the_words() -> None:
    result = make_result(ce=0.0, density=Density(torch.zeros(2, 2), 128), notes=("a note",))
    assert result.warnings[0] == "a note"
    for held in (result.card().training, result.summary()):
        assert held["failures"] == list(result.failures)
        assert held["warnings"] == list(result.warnings)
        assert held["bound"] == {"checks": 0, "outside": 0, "since": None}


def test_the_bound_is_watched() -> None:
    watch, seen = BoundWatch(), []
    for step, outside in [(10, True), (20, False), (30, True), (40, True)]:
        watch = watch.after(step, outside)
        seen.append(watch)
    assert [one.since for one in seen] == [10, None, 30, 30]
    assert (watch.checks, watch.outside) == (4, 3)
    said = "CE on the control set was above its bound at 3 of 4 checks"
    assert watch.in_words() == f"{said}, and from step 30 to the last one"
    assert watch.after(50, False).in_words().endswith("at 3 of 5 checks, not at the last one")
    assert BoundWatch().in_words() == "CE on the control set was not checked"
    assert BoundWatch(2, 0).in_words().endswith("at 0 of 2 checks")


@pytest.fixture
def dead_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that ends with no edge open, two nats under the bound."""
    real = TrainResult.__init__

    def ended(self: TrainResult, **values: Any) -> None:
        shut = replace(values["density"], per_head=torch.zeros_like(values["density"].per_head))
        real(self, **(values | {"density": shut, "ce": values["dense_ce"] - 2.0}))

    monkeypatch.setattr(TrainResult, "__init__", ended)


@pytest.mark.usefixtures("dead_end")
def test_the_command_fails_with_the_reason_and_keeps_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = main(
        ["train", "--out", str(out), "--context", "16", "--steps", "1", "--batch-size", "2",
         "--slack", "100", "--twins", "2"]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 1
    assert "0 % of edges open" in printed.out
    assert "CE on the control set was not checked" in printed.out
    # Both twins are trained, and both are told of.
    last = printed.err.splitlines()[-1]
    for seed in (0, 1):
        folder = out / f"seed{seed}"
        assert f"{folder / 'model'}: 0 % of attention edges are open" in last
        training = json.loads((folder / "model" / "gate.json").read_text())["training"]
        written = json.loads((folder / "run.json").read_text())["result"]
        for held in (training, written):
            assert held["failures"][0].startswith("0 % of attention edges are open")
            assert held["warnings"][0].startswith("CE is 2.00 nats under the dense model's")
    assert printed.err.count("circuits: warning: CE is 2.00 nats under the dense model's") == 2
