"""Every task on tokenizers like those of real models: it works, or an error says why not."""

from __future__ import annotations

import pytest

from circuits.prompts import continuation_ids, is_single_token, token_ids
from circuits.tasks import get_task, greater_than
from tests.tasks.tokenizer_kinds import BEGIN, KINDS, LONE_BRACKET, make_tokenizer

DIGIT_BY_DIGIT = ("smollm2", "qwen", "llama2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["ioi", "ioi_swap", "greater_than", "induction", "pronoun", "subject_verb", "brackets"]
)
def test_prompts_align_and_answers_are_the_next_token(kind: str, name: str) -> None:
    if (kind, name) == ("llama3", "greater_than"):
        return  # the one that is refused, see below
    tokenizer, task = make_tokenizer(kind), get_task(name)
    (prompts,) = task.draw(tokenizer, 12)
    pairs = task.pairs(tokenizer, 12, 0)
    begin = [] if kind == "qwen" else [tokenizer.convert_tokens_to_ids(BEGIN)]
    for row, pair in enumerate(pairs):
        length = int(prompts.lengths[row])
        clean = prompts.clean[row, :length].tolist()
        corrupted = prompts.corrupted[row, :length].tolist()
        assert clean == begin + tokenizer.encode(pair.clean, add_special_tokens=False)
        assert corrupted == begin + tokenizer.encode(pair.corrupted, add_special_tokens=False)
        assert 1 <= sum(a != b for a, b in zip(clean, corrupted, strict=True)) <= 2
        # The referee: the text with its answer, read as one.
        for texts, ids in (
            (pair.answers, prompts.answers[row]),
            (pair.wrong_answers, prompts.wrong_answers[row]),
        ):
            for text, token in [*zip(texts, ids.tolist(), strict=False)][::20]:
                read = tokenizer.encode(pair.clean + text, add_special_tokens=False)
                assert begin + read == [*clean, token], (pair.clean, text)


@pytest.mark.parametrize("kind", DIGIT_BY_DIGIT)
def test_digit_by_digit_the_same_digit_is_neither_right_nor_wrong(kind: str) -> None:
    pairs = get_task("greater_than").pairs(make_tokenizer(kind), 200, 0)
    assert len(pairs) == 200
    seen = set()
    for pair in pairs:
        first, last = (word for word in pair.clean.split() if word[0] == "1")
        assert (len(first), len(last)) == (4, 2)
        tens = int(first[2])
        seen.add(tens)
        assert [int(digit) for digit in pair.answers] == [d for d in range(10) if d > tens]
        assert [int(digit) for digit in pair.wrong_answers] == [d for d in range(10) if d < tens]
        assert pair.corrupted == pair.clean.replace(first, f"{last}01")
    assert seen == set(range(1, 9))


@pytest.mark.parametrize("kind", ["gpt2", "pythia"])
def test_where_two_digits_are_a_token_years_are_as_they_were(kind: str) -> None:
    pairs = get_task("greater_than").pairs(make_tokenizer(kind), 20, 0)
    for pair in pairs:
        start = int(pair.clean.split()[6][2:])
        assert pair.answers == greater_than.YEARS[start + 1 :]
        assert pair.wrong_answers == greater_than.YEARS[: start + 1]


def test_numbers_in_threes_are_refused_and_shown() -> None:
    with pytest.raises(ValueError, match=r"reads ' 1732' as \['Ġ', '173', '2'\]") as error:
        get_task("greater_than").build(make_tokenizer("llama3"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["qwen", "llama3"])
def test_a_name_that_one_bracket_is_joined_with_and_the_other_is_not_is_left_out(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    assert len(token_ids(tokenizer, f"({LONE_BRACKET}")) == 1
    assert len(token_ids(tokenizer, f"[{LONE_BRACKET}")) == 2
    texts = [pair.clean for pair in get_task("brackets").pairs(tokenizer, 200, 0)]
    assert any(text.endswith("(name") for text in texts)
    assert not any(text.endswith(f"({LONE_BRACKET}") for text in texts)


def test_what_follows_a_text_has_no_space_of_the_tokenizers_own() -> None:
    tokenizer = make_tokenizer("llama2")
    read = {
        text: tokenizer.convert_ids_to_tokens(token_ids(tokenizer, text)) for text in ("3", " Mary")
    }
    assert read == {"3": ["▁", "3"], " Mary": ["▁", "▁Mary"]}
    for text, token in (("3", "3"), (" Mary", "▁Mary"), ("]", "]")):
        assert tokenizer.convert_ids_to_tokens(continuation_ids(tokenizer, text)) == [token]
    assert is_single_token(tokenizer, "Mary", begins=True)
    for kind in KINDS[:-1]:
        other = make_tokenizer(kind)
        for text in ("3", " Mary", "32", "]", " unheard of"):
            assert continuation_ids(other, text) == token_ids(other, text)
