"""Text that a model writes itself: what is sampled, and what is left when it is stopped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.cli import main
from circuits.gate.gate import add_gate
from circuits.models.load import load_model
from circuits.models.saving import hf_model_of
from circuits.sparsify import own_text
from circuits.sparsify.dataset_stream import DatasetStream
from circuits.sparsify.own_text import PARTIAL, TextConfig, write_own_text
from tests.helpers import END, PAD, make_tiny_model
from tests.models.test_models import CONFIGS, TOKENS, hf_folder, logits, train_a_little

OPENINGS = ("w1 w2 w3 w4 w5", "w20", "w7 w7")


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return load_model(hf_folder(tmp_path / "model", request.param))


@pytest.fixture
def gpt2(tmp_path: Path) -> Any:
    return load_model(hf_folder(tmp_path / "model"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.newest
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_as_hugging_face_has_it_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = load_model(hf_folder(tmp_path / "model", kind))
    train_a_little(model)
    with torch.no_grad():
        found = hf_model_of(model)(TOKENS).logits
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=0)


@torch.no_grad()
def test_words_are_sampled_as_often_as_the_model_predicts_them(model: Any, tmp_path: Path) -> None:
    """On openings of different lengths, which stand padded in one batch."""
    temperature = 0.3  # a random model's predictions hardly differ else
    config = TextConfig(
        n_tokens=25_000, openings=OPENINGS, batch_size=600, length=6, temperature=temperature
    )
    write_own_text(model, path := tmp_path / "text.jsonl", config)
    texts = [line["text"] for line in lines_of(path)]
    words = [END, PAD, *(f"w{n}" for n in range(28))]
    for opening in OPENINGS:
        rests = [text[len(opening) :].split() for text in texts if text.startswith(opening)]
        found = Counter(rest[0] if rest else END for rest in rests)
        assert len(rests) > 1000
        ids, left = [0, *map(words.index, opening.split())], 1.0
        predicted = dict.fromkeys(words, 0.0)
        while len(ids) <= 6:  # PAD may be sampled too, but nothing is written of it
            scores = model(torch.tensor([ids]))[0, -1] / temperature
            share = dict(zip(words, scores.softmax(dim=-1).tolist(), strict=True))
            ids, pads = [*ids, words.index(PAD)], share.pop(PAD)
            predicted |= {word: predicted[word] + left * share[word] for word in share}
            left *= pads
        predicted[END] += left
        assert 0.06 < max(predicted.values()) < 0.98  # else any word would do, or one
        apart = sum(abs(found[word] / len(rests) - predicted[word]) for word in predicted) / 2
        assert apart < 0.1


def test_the_text_is_data_to_train_on(model: Any, tmp_path: Path) -> None:
    config = TextConfig(n_tokens=2000, batch_size=20, length=12)
    written = write_own_text(model, path := tmp_path / "text.jsonl", config)
    lines = lines_of(path)
    assert written.n_documents == len(lines)
    assert written.n_tokens == sum(line["tokens"] for line in lines) >= 2000
    assert written.n_tokens < 2000 + 20 * 12
    assert all(1 <= line["tokens"] <= 12 and line["text"].strip() for line in lines)
    assert not any("<" in line["text"] for line in lines)  # no special tokens
    rows = DatasetStream(str(path), model.tokenizer, context=16, held_out_fraction=0.2)
    assert rows.batch(0, 8).shape == (8, 16)


def test_the_same_call_writes_the_same_text_and_another_seed_another(
    gpt2: Any, tmp_path: Path
) -> None:
    config = TextConfig(n_tokens=300, batch_size=8, length=9, openings=OPENINGS)
    state = torch.get_rng_state()
    for name in "ab":
        write_own_text(gpt2, tmp_path / f"{name}.jsonl", config)
    assert torch.equal(torch.get_rng_state(), state)
    write_own_text(gpt2, tmp_path / "c.jsonl", TextConfig(**{**vars(config), "seed": 2**63 - 1}))
    a, b, c = (lines_of(tmp_path / f"{name}.jsonl") for name in "abc")
    assert a == b
    assert [line["text"] for line in a] != [line["text"] for line in c]


@pytest.mark.parametrize("kept", ["all", "half a line", "half a batch"])
def test_what_was_stopped_goes_on_to_the_same_text(kept: str, gpt2: Any, tmp_path: Path) -> None:
    config = TextConfig(n_tokens=400, batch_size=8, length=9)
    write_own_text(gpt2, whole := tmp_path / "whole.jsonl", config)

    def stop(n_tokens: int) -> None:
        if n_tokens > 200:
            raise KeyboardInterrupt

    path = tmp_path / "text.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_own_text(gpt2, path, config, on_tokens=stop)
    partial = tmp_path / f"text.jsonl{PARTIAL}"
    assert not path.exists()
    content = partial.read_text()
    cut = {"all": len(content), "half a line": -20, "half a batch": content[:-1].rfind("\n") + 1}
    partial.write_text(content[: cut[kept]])
    counts: list[int] = []
    write_own_text(gpt2, path, config, resume=True, on_tokens=counts.append)
    assert path.read_text() == whole.read_text()
    assert counts[0] > 100  # it did not begin anew
    assert not partial.exists()


def test_a_partial_file_of_something_else_is_refused(gpt2: Any, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    small: dict[str, Any] = {"batch_size": 4, "length": 5}

    def stop(_n_tokens: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_own_text(gpt2, path, TextConfig(n_tokens=50, **small), on_tokens=stop)
    before = (tmp_path / f"text.jsonl{PARTIAL}").read_text()
    with pytest.raises(FileExistsError, match="--resume"):
        write_own_text(gpt2, path, TextConfig(n_tokens=50, **small))
    with pytest.raises(ValueError, match="begun with another model, other settings"):
        write_own_text(gpt2, path, TextConfig(n_tokens=50, seed=1, **small), resume=True)
    assert (tmp_path / f"text.jsonl{PARTIAL}").read_text() == before
    write_own_text(gpt2, path, TextConfig(n_tokens=80, **small), resume=True)  # more is no change
    with pytest.raises(FileExistsError, match="there already"):
        write_own_text(gpt2, path, TextConfig(n_tokens=50, **small), resume=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"openings": (" ",)}, "an opening is empty"),
        ({"seed": -1}, "seed is -1"),
        ({"openings": ("w1 w2 w3 w4",), "length": 4}, "'w1 w2 w3 w4' has 4 tokens"),
        ({"length": 32}, "length is 32; the model's n_ctx is 32"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(
    wrong: dict[str, Any], said: str, gpt2: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"n_tokens": 10, "length": 8} | wrong
    with pytest.raises(ValueError, match=said):
        write_own_text(gpt2, tmp_path / "text.jsonl", TextConfig(**settings))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_that_write_no_such_text_are_refused(gpt2: Any, tmp_path: Path) -> None:
    path, config = tmp_path / "text.jsonl", TextConfig(n_tokens=10, length=4)
    with pytest.raises(ValueError, match="has a gate"):
        write_own_text(add_gate(gpt2), path, config)
    with pytest.raises(ValueError, match="no tokenizer"):
        write_own_text(make_tiny_model(), path, config)


def test_a_model_that_writes_nothing_is_refused(
    gpt2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text._Sampler, "batch", lambda *_: [])
    with pytest.raises(ValueError, match="nothing but blanks"):
        write_own_text(gpt2, tmp_path / "text.jsonl", TextConfig(n_tokens=10, length=4))


def test_the_command_writes_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hf_folder(tmp_path / "model")
    (openings := tmp_path / "openings.txt").write_text("w1 w2\n\nw3\n")
    command = ["text", "--model", str(folder), "--out", str(out := tmp_path / "t.jsonl")]
    options = [
        "--tokens",
        "0.2k",
        "--length",
        "8",
        "--batch-size",
        "6",
        "--openings",
        str(openings),
    ]
    assert main([*command, *options]) == 0
    assert "tokens written to" in capsys.readouterr().out
    texts = [line["text"] for line in lines_of(out)]
    assert {text.startswith("w1 w2") for text in texts[::2]} == {True}
    assert {text.startswith("w3") for text in texts[1::2]} == {True}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--tokens", "many"], "'many' is not a number"),
        (["--tokens", "nank"], "not a number"),
        (["--out", "text.txt"], "must end in .jsonl"),
        (["--out", "nowhere/text.jsonl"], "there is no folder"),
        (["--openings", "nothing.txt"], "there is no file"),
        (["--precision", "float16"], "float16"),
        (["--model", "sparse"], "has a gate"),
    ],
    ids=str,
)
def test_a_bad_command_is_refused(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = ["text", "--out", "text.jsonl", "--tokens", "10", "--length", "8"]
    assert main([*command, *wrong]) != 0
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
