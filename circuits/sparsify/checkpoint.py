"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder of three files: `tensors.safetensors`, `state.json` and `manifest.json`,
which holds the SHA-256 of the other two. It is written under a temporary name in the same folder,
flushed to the disk and renamed, so it is whole or absent: a full disk costs the one that does not
fit. What breaks later (a bad copy) shows in the manifest, and the one before it is used instead.

    checkpoints/step_00000200/   the two latest states of the run
    checkpoints/step_00000300/
    checkpoints/best_00000100/   the best weights that one of those two refers to
    checkpoints/layer_00000007/  a layer trained by itself, until there is a state of the run
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuits.files import replace_folder, write_text
from circuits.gate.card import read_json
from circuits.numbers import percent
from circuits.sparsify.folder_lock import LOCK_FILES, check_free
from circuits.sparsify.sharding import whole
from circuits.sparsify.training_page.run_folder import RUN_FILE

CHECKPOINTS = "checkpoints"
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"

_STEP, _BEST, _LAYER = "step_", "best_", "layer_"

# What safetensors calls the types that a model and AdamW have.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


class DamagedCheckpointError(ValueError):
    """A checkpoint's files are not what its manifest says."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved state.

    Attributes:
        path: its folder.
        tensors: tensors by name, on the CPU.
        state: everything else, as JSON.
        lost: of a state whose best weights are damaged, a sentence that says so.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    lost: str | None = None


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, writes: bool = True
) -> None:
    """Writes a checkpoint folder, whole or not at all; an old one of that name is replaced.

    Sharded tensors are gathered one by one while they are written, so all processes must call this
    alike, and one of them `writes`.

    Raises:
        OSError: it cannot be written; see `resumable_write`.
    """
    # As safetensors does it: the widest type first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    tensors = {name: tensors[name].detach() for name in names}
    if not writes:
        for tensor in tensors.values():
            whole(tensor)
        return
    with resumable_write(path, path.parent):
        _write_whole(path, tensors, state)


def _write_whole(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    with replace_folder(path) as new:
        _write_tensors(new / TENSORS_FILE, tensors)
        (new / STATE_FILE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        manifest = {name: _digest(new / name) for name in (TENSORS_FILE, STATE_FILE)}
        (new / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")


def load_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint in `path` after comparing its files with its manifest.

    Raises:
        DamagedCheckpointError: a file is missing, cut short or altered.
    """
    _check_files(path)
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return Checkpoint(path, load_file(path / TENSORS_FILE), state)


def _check_files(path: Path) -> None:
    """Compares the files of a checkpoint with its manifest."""
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        wrong = [
            name
            for name in (TENSORS_FILE, STATE_FILE)
            if _digest(path / name) != manifest.get(name)
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} cannot be read: {error}") from None
    if wrong:
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: {', '.join(wrong)} does not match {MANIFEST_FILE}"
        )


@contextlib.contextmanager
def resumable_write(path: Path, checkpoints: Path) -> Iterator[None]:
    """Says of a failure to write `path` inside the context what is safe and how to go on.

    Raises:
        OSError: it failed, such as on a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{path} could not be written: {reason}; {name_latest(checkpoints)}; mend that (free "
            "some space), then go on with resume=True (--resume)"
        ) from error


def name_latest(folder: Path) -> str:
    """Returns the part of a message that names the latest state, which a failure left as it was."""
    saved = sorted(folder.glob(f"{_STEP}*"))
    return f"the last checkpoint, {saved[-1]}, is intact" if saved else "there is no checkpoint yet"


def step_path(folder: Path, step: int) -> Path:
    """Returns where the state after `step` steps is kept."""
    return folder / f"{_STEP}{step:08d}"


def best_path(folder: Path, step: int) -> Path:
    """Returns where the weights after `step` steps are kept if they are the best so far."""
    return folder / f"{_BEST}{step:08d}"


def layer_path(folder: Path, layer: int) -> Path:
    """Returns where a layer is kept that was trained by itself."""
    return folder / f"{_LAYER}{layer:08d}"


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the latest state to go on from, None if there is none at all.

    That is the latest one that is undamaged together with the best weights that it refers to: a run
    that goes on from there ends with the bits of one whose files were never damaged. If there is
    none, it is the latest undamaged state, and its `lost` says that its best weights are lost.

    Warns:
        UserWarning: what is damaged, and what the run goes on from.

    Raises:
        DamagedCheckpointError: there are some, and all are damaged.
    """
    damage: list[str] = []
    without_best: Checkpoint | None = None
    for path in sorted(folder.glob(f"{_STEP}*"), reverse=True):
        try:
            found = load_checkpoint(path)
        except DamagedCheckpointError as error:
            damage.append(str(error))
            continue
        wrong = _damage_of_best(folder, found)
        if wrong is None:
            for message in damage:
                warnings.warn(f"{message}; going back to {found.path}", stacklevel=2)
            return found
        damage.append(wrong)
        if without_best is None:
            best = found.state
            lost = (
                f"the best weights up to step {best['step']}, of step {best['best_step']} with "
                f"{percent(best['best_density'])} of edges open, are lost: {wrong}"
            )
            without_best = replace(found, lost=lost)
    if without_best is not None:
        warnings.warn(
            f"{without_best.lost}; going on from {without_best.path} without them", stacklevel=2
        )
    elif damage:
        raise DamagedCheckpointError(
            f"no usable checkpoint in {folder}: {'; '.join(damage)}; start again in an empty folder"
        )
    return without_best


def _damage_of_best(folder: Path, checkpoint: Checkpoint) -> str | None:
    """Returns what is wrong with the best weights that a state refers to, None if nothing."""
    if checkpoint.state["best_step"] is None:
        return None
    try:
        _check_files(best_path(folder, checkpoint.state["best_step"]))
    except DamagedCheckpointError as error:
        return str(error)
    return None


def prune_checkpoints(folder: Path, step: int, *, keep: int = 2) -> None:
    """Removes what the state after `step` steps, just saved, makes needless.

    That is: older states but the last `keep`; later states, which a resumed run has passed over
    as damaged; best weights that no state left refers to (by `state["best_step"]`); states that
    cannot be read; layers that were trained by themselves; and folders half written when a run was
    killed.
    """
    needed: set[Path] = set()
    paths = sorted(folder.glob(f"{_STEP}*"))
    for path in [path for path in paths if path <= step_path(folder, step)][-keep:]:
        try:
            best_step = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))["best_step"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        needed.add(path)
        if best_step is not None:
            needed.add(best_path(folder, best_step))
    for kind in (_STEP, _BEST, _LAYER):
        for path in [*folder.glob(f"{kind}*"), *folder.glob(f".{kind}*")]:
            if path not in needed:
                shutil.rmtree(path)


def check_folder(out_dir: Path, *, resume: bool) -> None:
    """Refuses a folder that cannot take a new run, or holds none to resume.

    Raises:
        ValueError: it is a file; for a new run it is not empty; to resume, there is no run in it.
        FolderInUseError: another run is at work in it.
    """
    check_free(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file; give a folder for the run")
    if resume:
        if not (out_dir / RUN_FILE).is_file():
            raise ValueError(f"{out_dir} holds no run to resume: there is no {RUN_FILE} in it")
    elif out_dir.exists() and any(path.name not in LOCK_FILES for path in out_dir.iterdir()):
        raise ValueError(
            f"{out_dir} is not empty; give a new folder, or resume=True (--resume) to go on "
            "with the run in it"
        )


def find_run(out_dir: Path, identity: dict[str, Any], *, resume: bool) -> Checkpoint | None:
    """Returns the checkpoint to go on from in `out_dir`, None to start.

    Args:
        out_dir: new or empty, or the folder of the run to resume.
        identity: groups of values that a resumed run must share with the first.
        resume: whether to go on with the run in `out_dir`.

    Warns:
        UserWarning: some checkpoints are damaged; see `latest_checkpoint`.

    Raises:
        ValueError: the folder holds something else, or a run that differs; the text names how. Or
            all checkpoints are damaged.
    """
    check_folder(out_dir, resume=resume)
    if not resume:
        return None
    before = read_json(out_dir / RUN_FILE)
    differing = [
        f"{part}.{name} was {_entry(before, part, name)!r} and is {now!r}"
        for part, values in json.loads(json.dumps(identity)).items()
        for name, now in values.items()
        if _entry(before, part, name) != now
    ]
    if differing:
        raise ValueError(f"{out_dir} holds a different run: {'; '.join(differing)}")
    return latest_checkpoint(out_dir / CHECKPOINTS)


def _entry(values: dict[str, Any], part: str, name: str) -> Any:
    held = values.get(part)
    return held.get(name) if isinstance(held, dict) else None


def cut_log(path: Path, step: int) -> None:
    """Drops the lines after `step`, and a last one cut short: the resumed run writes them anew.

    Raises:
        OSError: it cannot be written; see `resumable_write`.
    """
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with resumable_write(path, path.parent / CHECKPOINTS):
        write_text(path, "".join(kept))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file with one tensor in memory at a time."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        about = {"dtype": _TYPES[tensor.dtype], "shape": [*tensor.shape]}
        header[name] = about | {"data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat = whole(tensor).cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
