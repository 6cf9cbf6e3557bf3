"""Finished parts of a comparison on the disk, so that one that was interrupted goes on.

A part is what `discover` found in one model for one task, the work of minutes or hours. The rest of
a comparison (cross-entropy, transfer, roles) takes a small share of that, and is done again.

A part is a file of two lines of JSON. The first says what it was computed from, its identity, and
holds a digest of the second, which is the discovery. A part is taken only if its identity is the
one that this comparison would give it: the same prompts token by token, weights, options, versions,
device and number of processes of a launcher. The comparison is then the one that would have come
without a stop, to the last bit. What a method or a metric from a file of a user's own computes is
not part of it: only their names are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import file_name_of, write_text
from circuits.gate.gate import gate_bias, is_gated
from circuits.gate.top_k import TopKScores
from circuits.models.adapter import weights_digest
from circuits.models.load import versions
from circuits.prompts import Prompts
from circuits.results.discovery import FORMAT, DiscoverConfig, Discovery
from circuits.tasks import Task, TaskPrompts
from circuits.workers import Workers

if TYPE_CHECKING:
    from circuits.models.backend import Model

Identity = dict[str, Any]
"""What a part was computed from, as JSON, by words that a person is told where it differs."""

_ENDING = ".jsonl"
_NOT_OF_THE_FUNCTION = ("device", "model_name", "tokenizer_name", "dtype")
"""Entries of a model's config that say nothing of what it computes, or stand in the identity."""


@dataclass(frozen=True)
class KeptParts:
    """What an earlier run left of a comparison.

    Attributes:
        discoveries: What fits this comparison, by task and model.
        n_wanted: How many discoveries this comparison is made of.
        seconds: How long what fits has taken.
        refused: Why a file is not used, by file name.
    """

    discoveries: dict[tuple[str, str], Discovery] = field(default_factory=dict)
    n_wanted: int = 0
    seconds: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)


def describe_model(model: Model) -> Identity:
    """Returns what tells the function that a model computes from others; reads all its weights."""
    config = {
        name: value
        for name, value in vars(model.cfg).items()
        if name not in _NOT_OF_THE_FUNCTION and _is_plain(value)
    }
    attention = f"gated, bias {gate_bias(model)}" if is_gated(model) else "dense"
    kept = {module.k for module in model.modules() if isinstance(module, TopKScores)}
    return {
        "weights": weights_digest(model),
        "dtype": str(model.W_E.dtype),
        "model config": _digest(json.dumps(config, sort_keys=True).encode()),
        "kind of model": type(model).__name__,
        "attention": f"top {min(kept)}" if kept else attention,
        "device": model.W_E.device.type,
    }


def identity_of(
    model: Identity, task: Task, prompts: TaskPrompts, config: DiscoverConfig, workers: Workers
) -> Identity:
    """Returns the identity of what is found in a model, as `describe_model` says it, for a task."""
    identity = {
        "task": task.name,
        "metric": task.metric,
        **{
            f"{name} prompts": _prompts_digest(getattr(prompts, name))
            for name in ("ranking", "sizing", "reporting")
        },
        **asdict(config),
        **model,
        "processes": workers.count,
        **versions(),
    }
    return json.loads(json.dumps(identity))


def part_files(folder: str | Path) -> list[Path]:
    """Returns the parts in a folder; none where there is no such folder."""
    return sorted(Path(folder).glob(f"*{_ENDING}"))


def read_parts(folder: str | Path, wanted: Mapping[tuple[str, str], Identity]) -> KeptParts:
    """Returns the parts in a folder that fit, and why the others do not.

    Args:
        folder: Where they lie; there need not be such a folder.
        wanted: The identity of each part of this comparison, by task and model.
    """
    keys = {_file_name(key): key for key in wanted}
    discoveries, refused, seconds = {}, {}, 0.0
    for path in part_files(folder):
        if path.name not in keys:
            refused[path.name] = "it is not a part of this search"
            continue
        key = keys[path.name]
        try:
            discoveries[key], its_seconds = _read(path, wanted[key])
            seconds += its_seconds
        except ValueError as error:
            refused[path.name] = f"{error}, so this is computed again"
    return KeptParts(discoveries, len(wanted), seconds, refused)


def write_part(
    folder: str | Path,
    key: tuple[str, str],
    identity: Identity,
    discovery: Discovery,
    seconds: float,
) -> None:
    """Writes what was found for a task in a model, and the time, to a file that is renamed last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(discovery.to_json(), allow_nan=False)
    head = {"format": FORMAT, "sha256": _digest(content.encode()), "seconds": seconds}
    head["identity"] = identity
    write_text(folder / _file_name(key), f"{json.dumps(head)}\n{content}\n")


def remove_parts(folder: str | Path) -> None:
    """Removes all parts and what is left of parts half written; the folder too, if it is empty."""
    folder = Path(folder)
    for path in (*part_files(folder), *folder.glob(f".*{_ENDING}.*")):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(path: Path, wanted: Identity) -> tuple[Discovery, float]:
    try:
        head, content = path.read_text().splitlines()
        known = json.loads(head)
        is_whole = known["sha256"] == _digest(content.encode())
        identity, its_format = dict(known["identity"]), known["format"]
        seconds = float(known["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError("the file is damaged") from None
    if not is_whole:
        raise ValueError("the file is damaged")
    if its_format != FORMAT:
        raise ValueError(f"it has format {its_format}, of another version")
    differing = [
        f"{name} was {_shown(identity.get(name))}, is {_shown(wanted.get(name))}"
        for name in dict.fromkeys([*wanted, *identity])
        if identity.get(name) != wanted.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError("; ".join(differing[:3]) + more)
    return Discovery.from_json(json.loads(content)), seconds


def _file_name(key: tuple[str, str]) -> str:
    task, model = key
    return file_name_of(f"{task}.{model.replace('.', '_')}{_ENDING}")


def _prompts_digest(prompts: Prompts) -> str:
    tensors = ("clean", "corrupted", "lengths", "answers", "wrong_answers")
    rows = {name: getattr(prompts, name).tolist() for name in tensors}
    return _digest(json.dumps(rows | {"templates": prompts.templates}).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def _shown(value: Any) -> str:
    return f"{value[:12]}..." if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)
