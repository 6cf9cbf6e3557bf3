"""Rows of the MIB benchmark become prompt pairs, and what cannot be used is named by its row."""

import json
from typing import Any

import pandas as pd
import pytest

from circuits.choices import MIB_TASKS
from circuits.prompts import tokenize_pairs
from circuits.tasks import TooFewPrompts, find_task
from circuits.tasks.mib import UNFIT, mib_pairs, mib_prompts, mib_task
from circuits.tasks.mib_rows import MIB_SOURCES
from tests.helpers import word_tokenizer

WORDS = (
    "When Mary and John Ann Bob went , gave to A B C D E sky is blue red ? : Answer 2 + 3 - = 5 4 "
    "1 7 12 San Jose"
).split()


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


def ioi(object_="Mary", subject="John", third="Ann", **more):
    prompt = "When {} and {} went , {} gave to"
    return {
        "prompt": prompt.format(object_, subject, subject),
        "template": prompt,
        "metadata": {"indirect_object": object_, "subject": subject, "random_c": third},
        "choices": [object_, subject],
        "answerKey": 0,
        "s2_io_flip_counterfactual": {"prompt": prompt.format(object_, subject, object_)},
        "abc_counterfactual": {"prompt": prompt.format(object_, subject, third)},
    } | more


def choice(labels=("A", "B"), other=("C", "D"), key=1, **more):
    def prompt(names):
        return f"sky is blue ? {names[0]} red {names[1]} blue Answer :"

    return {
        "prompt": prompt(labels),
        "choices": {"label": list(labels), "text": ["red", "blue"]},
        "answerKey": key,
        "symbol_counterfactual": {
            "prompt": prompt(other),
            "choices": {"label": list(other), "text": ["red", "blue"]},
            "answerKey": key,
        },
    } | more


def number(label: Any = 5, other: Any = 4, operator="+", **more):
    return {
        "prompt": f"2 {operator} 3 =",
        "operator": operator,
        "label": label,
        "random_counterfactual": {"prompt": f"1 {operator} 3 =", "label": other},
    } | more


def rows_in(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("task", "row", "corrupted", "right", "wrong"),
    [
        ("ioi", ioi(), "When Mary and John went , Mary gave to", " Mary", " John"),
        ("mcqa", choice(), "sky is blue ? C red D blue Answer :", "B", "D"),
        ("arc_easy", choice(key=0), "sky is blue ? C red D blue Answer :", "A", "C"),
        ("arc_challenge", choice(), "sky is blue ? C red D blue Answer :", "B", "D"),
        ("arithmetic_addition", number(), "1 + 3 =", "5", "4"),
        ("arithmetic-subtraction", number("1", "7", "-"), "1 - 3 =", "1", "7"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_row_of_each_task_is_a_pair(
    tmp_path, tokenizer, task, row, corrupted, right, wrong, name
):
    path = rows_in(tmp_path, [row], name)
    (pair,) = mib_pairs(task, tokenizer, data=path).pairs
    assert (pair.clean, pair.corrupted) == (row["prompt"], corrupted)
    assert (pair.answers, pair.wrong_answers) == ((right,), (wrong,))
    tokenize_pairs(tokenizer, [pair])


def test_every_task_has_a_source():
    assert list(MIB_SOURCES) == list(MIB_TASKS)


def test_another_counterfactual_goes_by_its_name(tmp_path, tokenizer):
    path = rows_in(tmp_path, [ioi()])
    for name in ("abc", "abc_counterfactual"):
        (pair,) = mib_pairs("ioi", tokenizer, data=path, counterfactual=name).pairs
        assert pair.corrupted == "When Mary and John went , Ann gave to"
        assert (pair.answers, pair.wrong_answers) == ((" Mary",), (" John",))


def test_what_the_benchmark_leaves_out_is_left_out_and_counted(tmp_path, tokenizer):
    path = rows_in(
        tmp_path, [ioi("San Jose"), ioi(), ioi(third="San Jose"), ioi("Bob"), ioi("Ann")]
    )
    found = mib_pairs("ioi", tokenizer, data=path, n=2)
    assert [pair.answers for pair in found.pairs] == [(" Mary",), (" Bob",)]
    assert found.left_out == {"names of different numbers of tokens": 2}

    path = rows_in(tmp_path, [choice(other=("C", "D E")), choice()])
    found = mib_pairs("mcqa", tokenizer, data=path)
    assert (len(found.pairs), found.left_out) == (1, {"answers of different numbers of tokens": 1})

    rows = [
        number(operator="-"),
        number(),
        number("1 2"),
        number(other="1 2"),
        number(random_counterfactual=None),
    ]
    found = mib_pairs("arithmetic_addition", tokenizer, data=rows_in(tmp_path, rows))
    assert len(found.pairs) == 1
    assert found.left_out == {
        "another operator": 1,
        "a number of several tokens": 2,
        "no counterfactual": 1,
    }
    with pytest.raises(TooFewPrompts, match="1 with another operator"):
        mib_pairs("arithmetic_addition", tokenizer, data=rows_in(tmp_path, rows[:1]))


LONGER = {"prompt": "When Mary and John went , Mary and John gave to"}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("ioi", ioi(s2_io_flip_counterfactual=LONGER), "row 2 cannot be used: clean has 10 tokens"),
        ("ioi", ioi("San Jose", "Bob Ann", "A B"), "row 2 cannot .*' San Jose' is not one token"),
        ("arc_easy", choice(("A B", "C D"), ("D E", "E A")), "row 2 cannot be used: the answer"),
    ],
)
def test_a_row_that_patching_cannot_use_is_refused_by_name_or_left_out(
    tmp_path, tokenizer, task, row, message
):
    good = ioi() if task == "ioi" else choice()
    path = rows_in(tmp_path, [good, row, good])
    with pytest.raises(ValueError, match=f"rows.jsonl: {message}") as refused:
        mib_pairs(task, tokenizer, data=path)
    assert "--skip-unfit" in str(refused.value)
    found = mib_pairs(task, tokenizer, data=path, skip_unfit=True)
    assert (len(found.pairs), found.left_out) == (2, {UNFIT: 1})


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("ioi", ioi(s2_io_flip_counterfactual=None), "row 2 has no s2_io_flip_.* has abc_counter"),
        (
            "ioi",
            ioi(abc_counterfactual={}, s2_io_flip_counterfactual={}),
            "flip_counterfactual.pro",
        ),
        ("mcqa", {"prompt": "sky"}, "row 2 has no symbol_counterfactual; it has no counterfactual"),
        ("mcqa", choice(key=2), "answerKey is 2, but there are 2 choices"),
        ("mcqa", choice(key=True), "answerKey is True, which it cannot be"),
        ("ioi", ioi(metadata={"subject": "John"}), "row 2 has no metadata.indirect_object"),
        ("ioi", ioi(prompt=3), "row 2: prompt is 3"),
        ("ioi", ioi(prompt=""), "row 2: prompt is ''"),
        ("arithmetic_addition", {"prompt": "2", "operator": "+"}, "has no random_counterfactual"),
        ("arithmetic_addition", number(label=None), "row 2 has no label"),
    ],
)
def test_a_row_that_lacks_something_is_refused_by_name(tmp_path, tokenizer, task, row, message):
    good = {"ioi": ioi(), "mcqa": choice()}.get(task, number())
    with pytest.raises(ValueError, match=rf"rows.jsonl: row 2.*{message.removeprefix('row 2')}"):
        mib_pairs(task, tokenizer, data=rows_in(tmp_path, [good, row]), skip_unfit=True)


def test_files_of_a_folder_are_those_of_the_split(tmp_path, tokenizer):
    rows_in(tmp_path, [ioi("Mary")], "train.jsonl")
    rows_in(tmp_path, [ioi("Ann", third="Mary")], "validation-00000-of-00002.parquet")
    rows_in(tmp_path, [ioi("Bob")], "validation-00001-of-00002.parquet")

    def answers(split):
        return [p.answers[0] for p in mib_pairs("ioi", tokenizer, data=tmp_path, split=split).pairs]

    assert answers("train") == [" Mary"]
    assert answers("validation") == [" Ann", " Bob"]
    with pytest.raises(FileNotFoundError, match="no rows of the split 'test'.*test.jsonl"):
        answers("test")


def test_files_that_are_no_rows_are_refused(tmp_path, tokenizer):
    for name, content, message in (
        ("a.jsonl", "[1]\n", "a.jsonl: row 1 must hold a JSON object"),
        ("a.parquet", "no", "a.parquet.*Parquet file size is 2 bytes"),
        ("a.csv", "no", "a.csv ends in none of .jsonl, .parquet"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            mib_pairs("ioi", tokenizer, data=tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no rows at .*gone.jsonl"):
        mib_pairs("ioi", tokenizer, data=tmp_path / "gone.jsonl")
    with pytest.raises(
        ValueError, match="unknown MIB task 'greater_than'; choose one of ioi, mcqa"
    ):
        mib_pairs("greater_than", tokenizer)


def test_rows_of_the_hub_are_asked_for_by_name_subset_and_split(monkeypatch, tokenizer):
    import datasets

    asked = []

    def load(name, subset, *, split):
        asked.append((name, subset, split))
        return [choice()]

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = mib_pairs("mcqa", tokenizer, split="validation")
    assert len(found.pairs) == 1
    assert asked == [("mib-bench/copycolors_mcqa", "4_answer_choices", "validation")]

    def fail(*_arguments, **_settings):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match="mib-bench/ioi is not to be had.*--data"):
        mib_pairs("ioi", tokenizer)


def test_a_task_of_ours_draws_different_rows_in_the_order_of_its_seed(tmp_path, tokenizer):
    names = ["Mary", "Ann", "Bob", "Mary"]
    path = rows_in(tmp_path, [ioi(name, third="Mary") for name in names])
    task = find_task(f"mib:ioi:{path}")
    assert (task.name, task.metric) == ("mib_ioi", "logit_diff")
    drawn = [pair.answers[0] for pair in task.pairs(tokenizer, 5, 0)]
    assert sorted(drawn) == [" Ann", " Bob", " Mary"]
    orders = {tuple(p.answers[0] for p in task.pairs(tokenizer, 3, seed)) for seed in range(8)}
    assert len(orders) > 1
    built = mib_task("ioi", data=path).build(
        tokenizer, n_ranking=1, n_sizing=1, n_reporting=1, seed=1
    )
    assert len({built.ranking.templates, built.sizing.templates, built.reporting.templates}) == 3


def test_one_split_ranks_and_another_is_measured_on(tmp_path, tokenizer):
    rows_in(tmp_path, [ioi("San Jose"), ioi("Mary"), ioi("Bob"), ioi("Ann")], "train.jsonl")
    rows_in(tmp_path, [ioi("Ann"), ioi("San Jose")], "validation.jsonl")

    def answers(**settings):
        parts = mib_prompts("ioi", tokenizer, n=2, **settings)
        return [
            tokenizer.convert_ids_to_tokens(one.answers[:, 0].tolist())
            for one in (parts.ranking, parts.evaluation)
        ], parts.left_out

    left = "names of different numbers of tokens"
    assert answers(data=tmp_path) == ([["Mary", "Bob"], ["Ann"]], {left: 2})
    file = tmp_path / "train.jsonl"  # a file alone: its first rows rank, the next are measured on
    assert answers(data=file) == ([["Mary"], ["Bob"]], {left: 1})
    with pytest.raises(ValueError, match="'train' cannot both rank and measure"):
        answers(data=tmp_path, split="train")
    with pytest.raises(TooFewPrompts, match="validation.jsonl has one row to use"):
        answers(data=tmp_path / "validation.jsonl")
