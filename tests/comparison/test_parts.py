"""An interrupted comparison goes on from its finished parts, to the same results."""

import copy
import functools
import json
import os
import random
import signal
from dataclasses import replace

import pytest
import torch

import circuits.comparison.searches as searches
from circuits.cli import main
from circuits.cli.console import progress_bar
from circuits.comparison.compare_models import compare
from circuits.comparison.parts import (
    describe_model,
    identity_of,
    part_files,
    read_parts,
    remove_parts,
    write_part,
)
from circuits.gate.gate import add_gate
from circuits.gate.top_k import add_top_k
from circuits.prompts import PromptPair
from circuits.report.tables import tables_of
from circuits.results.comparison_file import load_comparison
from circuits.results.discovery import DiscoverConfig
from circuits.tasks import Task
from circuits.tasks.task import _REGISTRY
from circuits.workers import ALONE, Workers
from tests.fake_comparison import make_comparison
from tests.helpers import make_tiny_model, word_tokenizer

WORDS = [f"w{i}" for i in range(12)]
TOKENIZER = word_tokenizer(WORDS)
CONFIG = DiscoverConfig(n_prompts=4, granularities=("mlp",))


def make_models():
    dense = make_tiny_model(tokenizer=TOKENIZER, n_layers=1)
    return dense, add_gate(copy.deepcopy(dense), 3.0), add_gate(copy.deepcopy(dense), 0.5)


def made_up_task():
    """A task whose right answers are the words that changing a prompt hurts most."""
    drawn = random.Random(0)
    texts = {}
    while len(texts) < 12:
        words = drawn.sample(WORDS, 5)
        texts[" ".join(words)] = " ".join([*words[:4], words[0]])
    clean, corrupted = (
        torch.tensor([[0, *TOKENIZER.encode(text)] for text in some])
        for some in (texts, texts.values())
    )
    with torch.no_grad():
        logits = [(model(clean) - model(corrupted))[:, -1, 2:] for model in make_models()]
    change = torch.stack(logits).sum(dim=0)
    pairs = [
        PromptPair(*both, (WORDS[right],), (WORDS[wrong],), "one")
        for both, right, wrong in zip(
            texts.items(), change.argmax(dim=1).tolist(), change.argmin(dim=1).tolist(), strict=True
        )
    ]
    return Task("made_up", "made up", "logit_diff", lambda _tokenizer, n, _seed: pairs[:n])


TASK = made_up_task()


def compared(parts=None, **options):
    dense, sparse, third = make_models()
    return compare(dense, sparse, TASK, CONFIG, others={"third": third}, parts=parts, **options)


def as_files(comparison):
    return {name: frame.to_csv(index=False) for name, frame in tables_of(comparison).items()}


def stop_at(number, stop):
    """`discover`, which stops before its call of that number."""
    calls = []

    def discover(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            stop()
        return real_discover(*arguments, **options)

    return discover


real_discover = searches.discover


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted():
    raise KeyboardInterrupt


def exit_code_in_a_child(work):
    """Of a forked process that does the work and never comes back from here."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_results(tmp_path, monkeypatch):
    parts = tmp_path / "out.parts"
    with monkeypatch.context() as patch:
        patch.setattr(searches, "discover", stop_at(3, killed))
        assert exit_code_in_a_child(lambda: compared(parts)) == -signal.SIGKILL
    kept_files = [path.name for path in part_files(parts)]
    assert kept_files == ["made_up.dense.jsonl", "made_up.sparse.jsonl"]

    searched, told = [], []
    with monkeypatch.context() as patch:
        patch.setattr(
            searches,
            "discover",
            lambda *given, **options: searched.append(1) or real_discover(*given, **options),
        )
        resumed = compared(parts, on_kept=told.append)
    assert len(searched) == 1
    (kept,) = told
    assert sorted(kept.discoveries) == [("made_up", "dense"), ("made_up", "sparse")]
    assert (kept.n_wanted, kept.refused) == (3, {})
    uninterrupted = compared()
    assert as_files(resumed) == as_files(uninterrupted)
    assert resumed.discoveries == uninterrupted.discoveries
    assert resumed.run["kept_parts"] == 2
    assert "kept_parts" not in uninterrupted.run


@pytest.mark.slow
def test_the_command_says_what_is_kept_and_removes_it_at_the_end(tmp_path, monkeypatch, capsys):
    arguments = ["compare", "--task", "made_up", "--prompts", "4", "--granularity", "mlp"]
    out = tmp_path / "out"
    monkeypatch.setattr("circuits.cli.compare._loaded_pair", lambda *_: make_models()[:2])
    monkeypatch.setitem(_REGISTRY, TASK.name, TASK)
    monkeypatch.setattr("circuits.report.write_results", lambda _comparison, out: out.mkdir())

    def run(*options):
        code = main([*arguments, "--out", str(out), *options])
        return code, " ".join(capsys.readouterr().err.split())

    monkeypatch.setattr(searches, "discover", stop_at(2, interrupted))
    code, said = run()
    assert code == 130
    assert "1 finished part kept in" in said
    monkeypatch.setattr(searches, "discover", real_discover)
    code, said = run()
    assert code == 2
    assert "out.parts holds 1 finished part of a search that did not end; go on" in said
    assert "with --resume, or delete that folder" in said
    part = tmp_path / "out.parts" / "made_up.dense.jsonl"
    part.with_name("old.dense.jsonl").write_text("")
    code, said = run("--resume")
    assert code == 0, said
    assert "1 of 2 parts are kept from before" in said
    assert "out.parts/old.dense.jsonl is not used: it is not a part of this search" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_an_interrupted_discovery_goes_on_to_the_same_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("circuits.models.load.load_model", lambda *_, **__: make_models()[1])
    second = replace(TASK, name="second")
    for task in (TASK, second):
        monkeypatch.setitem(_REGISTRY, task.name, task)
    arguments = ["discover", "--task", "made_up", "--task", "second", "--granularity", "mlp"]

    def run(out, *options, prompts="4"):
        code = main([*arguments, "--prompts", prompts, "--out", str(tmp_path / out), *options])
        return code, " ".join(capsys.readouterr().err.split())

    assert run("straight")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(searches, "discover", stop_at(2, interrupted))
        code, said = run("out")
    assert (code, "1 finished part kept in" in said) == (130, True)
    assert [path.name for path in part_files(tmp_path / "out.parts")] == ["made_up.model.jsonl"]
    code, said = run("out")
    assert (code, "go on from there with --resume, or delete that folder" in said) == (2, True)
    # Of other settings nothing is taken up: both tasks are searched, and what is kept is theirs.
    with monkeypatch.context() as patch:
        patch.setattr(searches, "discover", stop_at(1, interrupted))
        code, said = run("out", "--resume", prompts="3")
    assert code == 130
    assert "0 of 2 parts are kept from before" in said
    assert "out.parts/made_up.model.jsonl is not used: ranking prompts was" in said
    searched = []
    with monkeypatch.context() as patch:
        patch.setattr(
            searches,
            "discover",
            lambda *given, **options: searched.append(1) or real_discover(*given, **options),
        )
        code, said = run("out", "--resume")
    assert code == 0, said
    assert "1 of 2 parts are kept from before" in said
    assert len(searched) == 1
    assert not (tmp_path / "out.parts").exists()
    for path in sorted((tmp_path / "straight").rglob("*")):
        if path.suffix in (".csv", ".json") and path.name != "comparison.json":
            again = tmp_path / "out" / path.relative_to(tmp_path / "straight")
            assert again.read_bytes() == path.read_bytes()
    straight, resumed = (load_comparison(tmp_path / name) for name in ("straight", "out"))
    assert resumed.discoveries == straight.discoveries
    code, said = run("x.json", "--resume")
    assert (code, "a file has no parts to go on from" in said) == (2, True)


FOUND = make_comparison(tasks=("ioi",)).discoveries["ioi"]["dense"]
KEY = ("ioi", "dense")


def test_a_part_is_read_back_as_it_was(tmp_path):
    write_part(tmp_path / "new", KEY, {"torch": "2"}, FOUND, 1.5)
    kept = read_parts(tmp_path / "new", {KEY: {"torch": "2"}})
    assert kept.discoveries == {KEY: FOUND}
    assert (kept.seconds, kept.refused) == (1.5, {})


def test_a_part_of_something_else_is_refused_with_what_differs(tmp_path):
    digests = "0" * 64, "f" * 64
    write_part(tmp_path, KEY, {"torch": "2", "seed": 0, "weights": digests[0]}, FOUND, 1.5)
    kept = read_parts(tmp_path, {KEY: {"torch": "3", "seed": 0, "weights": digests[1]}})
    assert kept.discoveries == {}
    assert kept.refused == {
        "ioi.dense.jsonl": "torch was 2, is 3; weights was 000000000000..., is ffffffffffff..., "
        "so this is computed again"
    }


def changed_digit(text):
    return text.replace("0.92", "0.93", 1)


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:-100], lambda _: "", lambda text: "[]" + text, changed_digit],
    ids=["cut", "empty", "no JSON", "a changed digit"],
)
def test_a_damaged_part_is_refused(tmp_path, damage):
    write_part(tmp_path, KEY, {}, FOUND, 1.5)
    (path,) = part_files(tmp_path)
    before = path.read_text()
    assert damage(before) != before
    path.write_text(damage(before))
    kept = read_parts(tmp_path, {KEY: {}})
    assert kept.refused == {path.name: "the file is damaged, so this is computed again"}


def test_a_part_of_another_format_is_refused(tmp_path):
    write_part(tmp_path, KEY, {}, FOUND, 1.5)
    (path,) = part_files(tmp_path)
    head, content = path.read_text().splitlines()
    path.write_text(json.dumps(json.loads(head) | {"format": 2}) + "\n" + content + "\n")
    assert (
        "it has format 2, of another version" in read_parts(tmp_path, {KEY: {}}).refused[path.name]
    )


def test_a_part_that_was_being_written_when_the_process_died_is_no_part(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: killed())
    write = functools.partial(write_part, tmp_path / "parts", KEY, {}, FOUND, 1.5)
    assert exit_code_in_a_child(write) == -signal.SIGKILL
    assert len(list((tmp_path / "parts").iterdir())) == 1
    kept = read_parts(tmp_path / "parts", {KEY: {}})
    assert (kept.discoveries, kept.refused) == ({}, {})
    remove_parts(tmp_path / "parts")
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_where_there_is_no_folder(tmp_path):
    assert read_parts(tmp_path / "none", {KEY: {}}).discoveries == {}


def test_only_parts_are_removed(tmp_path):
    write_part(tmp_path / "parts", KEY, {}, FOUND, 1.5)
    (tmp_path / "parts" / "thesis.tex").write_text("mine")
    remove_parts(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["thesis.tex"]
    remove_parts(tmp_path / "none")


def other_weights(model):
    model.unembed.W_U.data[3, 5] += 1e-3
    return model


def other_norm(model):
    model.cfg.eps = 1e-3
    return model


CHANGES = {
    "weights": other_weights,
    "model config": other_norm,
    "attention": add_gate,
    "dtype": lambda model: model.to(torch.bfloat16).to(torch.float64),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_function_is_another_model(what):
    model = make_tiny_model()
    before, after = describe_model(model), describe_model(CHANGES[what](copy.deepcopy(model)))
    assert before == describe_model(make_tiny_model())
    assert what in {name for name in before if before[name] != after[name]}


def test_gates_and_top_k_are_told_apart():
    made = [add_gate(make_tiny_model()), add_gate(make_tiny_model(), 1.0)]
    made += [add_top_k(make_tiny_model(), 2), add_top_k(make_tiny_model(), 4)]
    found = [describe_model(model)["attention"] for model in made]
    assert found == ["gated, bias 0.0", "gated, bias 1.0", "top 2", "top 4"]


def test_the_identity_tells_prompts_options_and_processes_apart():
    described = describe_model(make_tiny_model())
    prompts = TASK.build(TOKENIZER, n_ranking=4, n_sizing=4, n_reporting=4)
    longer = replace(prompts, sizing=prompts.reporting)

    def differing(*arguments):
        known = identity_of(described, TASK, prompts, CONFIG, ALONE)
        other = identity_of(described, *arguments)
        return [name for name in known if known[name] != other[name]]

    assert differing(TASK, prompts, CONFIG, ALONE) == []
    assert differing(replace(TASK, name="other"), prompts, CONFIG, ALONE) == ["task"]
    assert differing(TASK, longer, CONFIG, ALONE) == ["sizing prompts"]
    assert differing(TASK, prompts, replace(CONFIG, target=0.8), ALONE) == ["target"]
    assert differing(TASK, prompts, CONFIG, Workers(1, 2)) == ["processes"]


def test_the_bar_counts_what_is_left_after_parts_were_kept():
    with progress_bar(10) as step:
        step("a")
        step.leave_out(6)
        assert step.remaining == 3
        step("b")
        assert step.remaining == 2
    assert step.remaining == 0
