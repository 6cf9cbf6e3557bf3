"""The text of a real model: read without its markup, cut, and split without an overlap."""

from __future__ import annotations

import importlib
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

ANALYSES = Path(__file__).parents[2] / "analyses"
WORDS = [f"w{i}" for i in range(3000)]


@pytest.fixture
def text(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(ANALYSES)
    return importlib.import_module("real_model_text")


@pytest.fixture
def sources(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(ANALYSES)
    return importlib.import_module("real_model_sources")


def written(seed: int, n_words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def test_paragraphs_lose_their_line_breaks_and_keep_their_order(text):
    assert text.cleaned("\n\nOne\n  two \n \n\nthree\n") == "One two\n\nthree"


def test_a_long_text_is_cut_between_paragraphs_and_long_paragraphs_between_sentences(
    text, monkeypatch
):
    monkeypatch.setattr(text, "LONGEST", 24)
    assert list(text.pieces("Short.\n\nAlso short.\n\nOne more.")) == [
        "Short.\n\nAlso short.",
        "One more.",
    ]
    assert list(text.pieces("A sentence. Another. And a third one.")) == [
        "A sentence. Another.",
        "And a third one.",
    ]


def test_nothing_is_on_both_sides_and_more_sources_move_nothing(text):
    novel = [("novel", 1.0, written(i)) for i in range(400)]
    first = written(0)
    near = first.rsplit(" ", 5)[0] + " with another end of its own"
    files = text.split([(text.SPEECHES, 1.0, first), *novel, ("novel", 1.0, near)])
    assert files[text.SPEECHES] == [first]
    held_out, train = files["heldout_novel"], files["train"]
    assert sorted([*held_out, *train]) == sorted(written(i) for i in range(1, 400))
    assert 5 <= len(held_out) <= 40  # 20 are expected
    more = text.split([*novel, *(("essay", 1.0, written(i)) for i in range(400, 500))])
    assert set(held_out) <= set(more["heldout_novel"]) <= {*held_out, first}
    assert [kept for kept in more["train"] if kept in set(train)] == train


def test_a_share_takes_from_what_is_trained_on_alone(text):
    whole = text.split([("press", 1.0, written(i)) for i in range(300)])
    half = text.split([("press", 0.5, written(i)) for i in range(300)])
    assert half["heldout_press"] == whole["heldout_press"]
    assert set(half["train"]) < set(whole["train"])
    assert 0.35 < len(half["train"]) / len(whole["train"]) < 0.65


def test_an_archive_of_another_digest_is_refused(text, sources, tmp_path):
    source = sources.SOURCES[0]
    held = tmp_path / source.sha256
    held.mkdir()
    (held / "package.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="has the digest"):
        text.fetched(source, tmp_path)


def test_conversations_name_who_speaks_once_a_turn(sources):
    said = [[("x", "Hi\n there"), ("x", "Well?")], [("y", "Hello")], [("x", "Bye")]]
    messages = [[{"sender": who, "text": what} for who, what in turn] for turn in said]
    files = {"chitchat_dataset/dataset.json": json.dumps({"id": {"messages": messages}}).encode()}
    assert list(sources.conversations(files)) == ["A: Hi there\n\nWell?\n\nB: Hello\n\nA: Bye"]


def test_tagged_samples_are_spaced_as_print_is(sources):
    tagged = "\t``/`` Is/bez it/pps 1/2/cd ?/. ?/. ''/'' he/pps asked/vbd (/( twice/rb )/) ./."
    files = {"package/ca01": tagged.encode(), "package/README": b"left/out"}
    assert list(sources.brown_samples(files)) == ['\t"Is it 1/2?" he asked (twice).']


def test_chapters_of_a_bible_lose_notes_and_markup(sources):
    book = (
        '<title>Left out</title><chapter n="1" sID="J.1"/><w lemma="x">Jesus</w>'
        '<note place="foot">left out</note><w>wept</w>.<chapter eID="J.1"/>'
        '<chapter n="2" sID="J.2"/>One<div sID="2" type="x-p"/>Two'
    )
    packed = zlib.compress(book.encode())
    folder = "./usr/share/sword/modules/texts/ztext/engWEB2015eb"
    files = {f"{folder}/ot.bzs": struct.pack("<III", 0, 0, 0), f"{folder}/ot.bzz": b""}
    files[f"{folder}/nt.bzs"] = struct.pack("<III", 2, len(packed), len(book))
    files[f"{folder}/nt.bzz"] = b"--" + packed
    assert list(sources.bible_chapters(files)) == ["Jesus wept.", "One\n\nTwo"]


def test_chapters_of_novels_are_read_from_the_data_base_of_r(sources):
    lines = ["TITLE", "CHAPTER I", "It was.", "", "Chapter 2", "The end."]
    values = b"X\n" + struct.pack(">iiiii", 2, 0, 0, 16, len(lines))
    for line in lines:
        values += struct.pack(">ii", 9, len(line)) + line.encode()
    one = struct.pack(">i", len(values)) + zlib.compress(values)
    files = {"./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb": one + one}
    assert (
        list(sources.austen_chapters(files)) == ["CHAPTER I\nIt was.\n", "Chapter 2\nThe end."] * 2
    )


def test_headings_of_a_page_stand_before_their_sections(sources):
    prose = "A long &amp; dull <i>sentence</i>. " * 90
    page = f"<head>x</head><h1>Part</h1><h2>One</h2><p>{prose}</p><pre>code</pre><h2>Two</h2>short"
    (read,) = {tuple(sources.web_sections("p.html")({"p.html": page.encode(), "q": b"no"}))}
    assert [" ".join(section.split())[:30] for section in read] == [
        "Part One A long & dull sentenc",
        "Two short",
    ]
    assert "code" not in read[0]
