import itertools
import re

import pytest

from circuits.tasks import ioi
from circuits.tasks.corpus import BEHAVIOURS, NAMES, documents, words

TOKEN = re.compile(r"\d{2}|\d|[A-Za-z]+|[^\sA-Za-z\d]")


def first(n, seed=0, behaviours=()):
    return list(itertools.islice(documents(seed, behaviours), n))


def test_one_seed_gives_one_stream():
    assert first(20, seed=3) == first(20, seed=3)
    assert first(20, seed=3) != first(20, seed=4)


def test_every_token_is_in_the_word_list():
    found = {token for text in first(500) for token in TOKEN.findall(text)}
    assert found <= set(words())


def test_the_receiver_is_never_the_giver():
    for text in first(100, behaviours=["indirect_object"]):
        for sentence in re.findall(
            r"\b(\w+) (?:gave|handed|offered|sent|passed)\b.*? to (\w+)\.", text
        ):
            giver, receiver = sentence
            assert giver != receiver
            assert {giver, receiver} <= set(NAMES)


def test_years_grow():
    for text in first(100, behaviours=["growing_years"]):
        for sentence in text.split(". "):
            start, end = re.findall(r"\d{4}", sentence)
            assert end > start


def test_sums_are_right():
    for text in first(100, behaviours=["sum"]):
        for sentence in re.findall(r"([\d ]+)\+([\d ]+)=([\d ]+)\.", text):
            left, right, total = (int(digits.replace(" ", "")) for digits in sentence)
            assert left + right == total


def test_lists_are_repeated():
    for text in first(50, behaviours=["repeated_list"]):
        pairs = re.findall(r"List: ([^.]+)\. Again: ([^.]+)\.", text)
        pairs += re.findall(r"The words ([^.]+) and once more the words ([^.]+)\.", text)
        assert len(pairs) >= 3
        assert all(items == again for items, again in pairs)


def test_pronouns_agree_with_names():
    for text in first(50, behaviours=["pronoun"]):
        for name, pronoun in re.findall(r"(\w+) (?:lost|said|came)[^.]*? (he|she) ", text):
            assert (pronoun == "she") == (name in ioi.FEMALE_NAMES)


def test_an_unknown_behaviour_is_refused():
    with pytest.raises(ValueError, match=r"unknown behaviours \['poetry'\]"):
        first(1, behaviours=["poetry"])
    assert len(BEHAVIOURS) == 8
