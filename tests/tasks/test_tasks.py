import re
import time
from dataclasses import replace

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from circuits.prompts import is_single_token
from circuits.tasks import (
    PromptPair,
    Task,
    TaskPrompts,
    TooFewPrompts,
    brackets,
    get_task,
    register_task,
    task_from_file,
    task_names,
    tokenize_pairs,
)
from circuits.tasks.corpus import corpus_tokenizer
from circuits.tasks.greater_than import YEARS
from circuits.tasks.ioi import FEMALE_NAMES, MALE_NAMES, PLACES, TEMPLATES, THINGS
from tests.helpers import word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return corpus_tokenizer(context=128)


@pytest.mark.parametrize("name", ["ioi", "ioi_swap"])
def test_ioi_corrupts_just_the_second_mention(tokenizer, name):
    (prompts,) = get_task(name).draw(tokenizer, 20)
    changed = prompts.clean != prompts.corrupted
    assert (changed.sum(dim=1) == 1).all()
    mentions = (prompts.clean == prompts.wrong_answers).int()
    assert (mentions.sum(dim=1) == 2).all()
    second = mentions.cumsum(dim=1).argmax(dim=1)
    assert torch.equal(changed.int().argmax(dim=1), second)


def test_ioi_swap_puts_the_answer_in_and_ioi_a_third_name(tokenizer):
    (third,) = get_task("ioi").draw(tokenizer, 20)
    (swapped,) = get_task("ioi_swap").draw(tokenizer, 20)
    assert ((swapped.corrupted == swapped.answers).sum(dim=1) == 2).all()
    assert ((third.corrupted == third.answers).sum(dim=1) == 1).all()
    assert ((third.corrupted == third.wrong_answers).sum(dim=1) == 1).all()


def test_ioi_has_every_template_in_both_orders_equally_often(tokenizer):
    _, prompts = get_task("ioi").draw(tokenizer, 40, 40)
    groups = prompts.groups()
    assert len(groups) == 2 * len(TEMPLATES)
    assert {len(rows) for rows in groups.values()} == {4}
    for template, rows in groups.items():
        first = (prompts.clean[rows] == prompts.answers[rows]).int().argmax(dim=1)
        other = (prompts.clean[rows] == prompts.wrong_answers[rows]).int().argmax(dim=1)
        assert (first < other).all() if "ABBA" in template else (first > other).all()


def test_subject_verb_exchanges_both_numbers_and_the_near_noun_misleads(tokenizer):
    (prompts,) = get_task("subject_verb").draw(tokenizer, 40)
    assert ((prompts.clean != prompts.corrupted).sum(dim=1) == 2).all()
    assert len(prompts.groups()) == 2
    texts = [tokenizer.decode(row) for row in prompts.clean.tolist()]
    are = tokenizer.convert_tokens_to_ids("are")
    for text, answer in zip(texts, prompts.answers[:, 0].tolist(), strict=True):
        subject, other = re.findall(r"The (\w+) near the (\w+)", text)[0]
        assert subject.endswith("s") == (answer == are) != other.endswith("s")


def test_pronoun_changes_the_name_alone_and_asks_for_both_genders(tokenizer):
    (prompts,) = get_task("pronoun").draw(tokenizer, 30)
    assert ((prompts.clean != prompts.corrupted).sum(dim=1) == 1).all()
    assert (prompts.answers != prompts.wrong_answers).all()
    she = tokenizer.convert_tokens_to_ids("she")
    assert (prompts.answers == she).sum() == 15


@pytest.fixture(scope="module")
def names_in_sentences():
    """A byte-level BPE that has met names within sentences only, as those of web text mostly do."""
    bpe = ByteLevelBPETokenizer()
    words = [*FEMALE_NAMES, *MALE_NAMES, *PLACES, *THINGS, "she", "he", "lost", "because", "came"]
    text = " ".join(f"said {word} then {word}" for word in words)
    bpe.train_from_iterator([text] * 20, vocab_size=2000, show_progress=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **end)


def test_pronoun_takes_names_that_are_one_token_where_they_stand(names_in_sentences):
    assert len(names_in_sentences.encode(" Mary")) == 1
    assert len(names_in_sentences.encode("Mary")) > 1
    prompts = (
        get_task("pronoun")
        .build(names_in_sentences, n_ranking=40, n_sizing=20, n_reporting=20)
        .ranking
    )
    assert ((prompts.clean != prompts.corrupted).sum(dim=1) == 1).all()
    # No prompt begins with a name, and both pronouns are asked for in each of the others.
    assert set(prompts.templates) == {"2", "3"}
    for rows in prompts.groups().values():
        assert len({int(prompts.answers[row, 0]) for row in rows}) == 2


@pytest.fixture(scope="module")
def code_tokenizer():
    """A byte-level BPE, as models of code have; it has read all names but `dict` and `text`."""
    bpe = ByteLevelBPETokenizer()
    names = {*brackets.OUTER, *brackets.INNER} - {"dict", "text"}
    lines = [f"{name} {name}[{name}]({name})\n" for name in names]
    bpe.train_from_iterator(lines * 20, vocab_size=2000, show_progress=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **end)


def test_brackets_changes_the_open_bracket_alone_and_asks_for_both_kinds(code_tokenizer):
    (prompts,) = get_task("brackets").draw(code_tokenizer, 48)
    changed = prompts.clean != prompts.corrupted
    assert (changed.sum(dim=1) == 1).all()
    opened = [code_tokenizer.decode(token) for token in prompts.clean[changed]]
    closed = [code_tokenizer.decode(token) for token in prompts.answers[:, 0]]
    assert [brackets.CLOSING[mark] for mark in opened] == closed
    assert closed.count("]") == 24
    assert len(prompts.groups()) == 2 * len(brackets.TEMPLATES)
    texts = " ".join(code_tokenizer.decode(row) for row in prompts.clean.tolist())
    assert "items" in texts
    assert "dict" not in texts
    assert "text" not in texts.replace("endoftext", "")


def test_brackets_are_refused_by_a_tokenizer_that_has_read_no_code(tokenizer):
    with pytest.raises(ValueError, match="for models that have read code"):
        get_task("brackets").build(tokenizer)


def test_induction_exchanges_the_next_word_and_a_later_one(tokenizer):
    (prompts,) = get_task("induction").draw(tokenizer, 30)
    for row in range(30):
        clean, corrupted = prompts.clean[row], prompts.corrupted[row]
        places = (clean != corrupted).nonzero()[:, 0].tolist()
        assert len(places) == 2
        assert clean[places].tolist() == corrupted[places].flip(0).tolist()
        assert clean[places[0]] == prompts.answers[row]
        assert clean[places[1]] == prompts.wrong_answers[row]
        # The word before the answer, at its first mention, is the last word of the prompt.
        assert clean[places[0] - 1] == clean[prompts.last[row]]


def test_greater_than_splits_the_years_at_the_start_year(tokenizer):
    for pair in get_task("greater_than").pairs(tokenizer, 50, 0):
        century_and_year = pair.clean.split()[6]
        start = int(century_and_year[2:])
        assert [int(year) for year in pair.answers] == list(range(start + 1, 100))
        assert [int(year) for year in pair.wrong_answers] == list(range(start + 1))
        assert pair.corrupted == pair.clean.replace(century_and_year, century_and_year[:2] + "01")


def test_the_answers_to_a_war_of_1732_are_33_to_99(tokenizer):
    pairs = get_task("greater_than").pairs(tokenizer, 20_000, 0)
    (pair,) = [pair for pair in pairs if "war lasted from the year 1732" in pair.clean]
    assert pair.answers == YEARS[33:]
    assert pair.wrong_answers == YEARS[:33]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ioi", "ioi_swap", "greater_than"])
def test_the_three_sets_share_no_prompt_and_follow_the_seed(tokenizer, name):
    task = get_task(name)
    one, same, other = (
        task.build(tokenizer, n_ranking=50, n_sizing=40, n_reporting=30, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(one.reporting.clean, same.reporting.clean)
    assert not torch.equal(one.reporting.clean, other.reporting.clean)
    sets = [one.ranking, one.sizing, one.reporting]
    assert [len(prompts) for prompts in sets] == [50, 40, 30]
    rows = [tuple(row) for prompts in sets for row in prompts.clean.tolist()]
    # Padded to different widths, two rows could differ for no other reason.
    assert len({prompts.clean.shape[1] for prompts in sets}) == 1
    assert len(set(rows)) == 120


@pytest.mark.parametrize(
    "name", ["ioi", "ioi_swap", "greater_than", "induction", "pronoun", "subject_verb"]
)
def test_every_task_has_prompts_for_three_sets_of_the_default_size(tokenizer, name):
    prompts = get_task(name).build(tokenizer)
    assert [len(getattr(prompts, part)) for part in ("ranking", "sizing", "reporting")] == [100] * 3


def test_brackets_have_prompts_for_three_sets_of_the_default_size(code_tokenizer):
    assert len(get_task("brackets").build(code_tokenizer).reporting) == 100


def test_a_template_must_be_of_one_length_in_all_sets(tokenizer):
    (prompts,) = get_task("ioi").draw(tokenizer, 10)
    longer = replace(prompts, lengths=prompts.lengths + (torch.arange(10) == 3))
    with pytest.raises(
        ValueError, match=r"template '2 BABA' has prompts of \d+ tokens in the rank"
    ):
        TaskPrompts(ranking=prompts, sizing=prompts, reporting=longer)


def test_prompts_begin_with_the_separator_and_are_padded_on_the_right(tokenizer):
    (prompts,) = get_task("ioi").draw(tokenizer, 10)
    assert (prompts.clean[:, 0] == tokenizer.bos_token_id).all()
    for row, length in zip(prompts.clean, prompts.lengths, strict=True):
        assert (row[length:] == tokenizer.pad_token_id).all()
        assert (row[:length] != tokenizer.pad_token_id).all()


PAIR = PromptPair("one red", "one blue", ("two",), ("three",), "t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": "one blue sky"}, "clean has 3 tokens, corrupted 'one blue sky' has 4"),
        ({"corrupted": "one red"}, "clean and corrupted are the same tokens"),
        ({"answers": ("two three",)}, "the answer 'two three' is not one token .* but 2"),
        ({"answers": ()}, "lacks an answer or a wrong answer"),
        ({"answers": ("three",)}, "a right answer is also a wrong one"),
        ({"clean": "one unheard"}, "holds a word that the tokenizer does not know"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_pair_is_refused_with_its_number_and_text(changes, message):
    tokenizer = word_tokenizer("<|unk|> one two three red blue sky".split())
    tokenizer.backend_tokenizer.model.unk_token = "<|unk|>"
    tokenizer.add_special_tokens({"unk_token": "<|unk|>"})
    pair = PromptPair(**{**vars(PAIR), **changes})
    with pytest.raises(ValueError, match=rf"(?s)pair 2 \('.*{message}"):
        tokenize_pairs(tokenizer, [PAIR, pair])


def test_pairs_of_one_template_must_be_of_one_length():
    tokenizer = word_tokenizer("one two three red blue".split())
    longer = PromptPair("one one red", "one one blue", ("two",), ("three",), "t")
    with pytest.raises(ValueError, match="others of template 't' have 3; give it a template"):
        tokenize_pairs(tokenizer, [PAIR, longer])


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no prompt pairs"):
        tokenize_pairs(word_tokenizer(["one"]), [])


@pytest.mark.parametrize(
    ("name", "n"),
    [("ioi", 1_000_000), ("ioi_swap", 10**9), ("induction", 100_000), ("subject_verb", 10**9)],
)
def test_more_prompts_than_can_be_run_are_refused_at_once(tokenizer, name, n):
    started = time.perf_counter()
    with pytest.raises(TooFewPrompts, match="different prompts are needed.* ask for fewer prompts"):
        get_task(name).build(tokenizer, n_ranking=n, n_sizing=n, n_reporting=n)
    assert time.perf_counter() - started < 5


def test_a_draw_ends_soon_after_the_last_prompt_is_found(tokenizer):
    started = time.perf_counter()
    pairs = get_task("pronoun").pairs(tokenizer, 20_000, 0)
    assert time.perf_counter() - started < 5
    # A name and, in two of three templates, a thing or a place.
    n_names, n_things, n_places = (
        sum(is_single_token(tokenizer, f" {word}") for word in words)
        for words in (FEMALE_NAMES + MALE_NAMES, THINGS, PLACES)
    )
    assert len(pairs) == n_names * (n_things + n_places + 1)


def test_more_prompts_than_there_are_is_an_error(tokenizer):
    with pytest.raises(
        TooFewPrompts,
        match=r"are needed \(20000 \+ 100 \+ 100, a set each\); ask for at most \d+ prompts",
    ):
        get_task("greater_than").build(tokenizer, n_ranking=20_000)
    with pytest.raises(
        ValueError, match=r"asked for 0 \+ 100 \+ 100 prompts; every set must have at least 1"
    ):
        get_task("ioi").build(tokenizer, n_ranking=0)


def test_an_unknown_task_is_refused_with_a_hint():
    with pytest.raises(
        ValueError, match=r"unknown task 'greater_then'.*Did you mean 'greater_than'"
    ):
        get_task("greater_then")


def test_a_task_of_ones_own_is_found_by_name(monkeypatch):
    monkeypatch.setattr("circuits.tasks.task._REGISTRY", {})
    mine = register_task(Task("mine", "for a test", "kl_div", lambda *_: [PAIR]))
    assert get_task("mine") is mine
    assert task_names() == ["mine"]
    with pytest.raises(ValueError, match="'mine' is already registered"):
        register_task(Task("mine", "another", "kl_div", lambda *_: []))


def test_a_task_with_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="has the metric 'loss'; choose one of"):
        Task("mine", "for a test", "loss", lambda *_: [])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_of_pairs_becomes_a_task(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        rows = [f"one red{i},one blue{i},two,01" for i in range(4)]
        path.write_text("clean,corrupted,answer,wrong_answer\n" + "\n".join(rows) + "\n")
    else:
        row = (
            '{{"clean":"one red{0}","corrupted":"one blue{0}","answer":"two","wrong_answer":"01"}}'
        )
        path.write_text("\n".join(row.format(i) for i in range(4)) + "\n")
    task = task_from_file(path)
    assert task.name == "mine"
    pairs = task.pairs(word_tokenizer([]), 4, 0)
    assert {pair.clean for pair in pairs} == {f"one red{i}" for i in range(4)}
    assert {pair.wrong_answers for pair in pairs} == {("01",)}
    assert len({pair.template for pair in pairs}) == 4


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", None, FileNotFoundError, "no file of prompt pairs"),
        ("a.txt", "x", ValueError, "neither .csv nor .jsonl"),
        ("a.csv", "clean,answer\nx,y\n", ValueError, "lacks the columns corrupted, wrong_answer"),
        (
            "a.csv",
            "clean,corrupted,answer,wrong_answer\na,b,c,d\na,b,,d\n",
            ValueError,
            "row 2 has no text in the column 'answer'",
        ),
    ],
    ids=["missing", "suffix", "columns", "empty cell"],
)
def test_a_bad_file_is_refused(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        task_from_file(tmp_path / name)
