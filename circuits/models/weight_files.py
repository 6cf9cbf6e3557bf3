"""The weight files of a model's folder, looked into before they are read.

A safetensors file begins with the name, dtype and shape of every tensor, so what a folder holds is
known at the cost of a few kilobytes. What would be misread in silence is refused here: an index
that does not fit its files, and weights that are whole numbers (quantized ones, whose scale lies
elsewhere), which a loader casts to floats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuits.models.config_file import Held
from circuits.reading import is_there, read_json, shown

# In the order in which transformers looks for them; a .bin is read without running what is in it.
_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"

_FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# Masks and positions that older versions saved next to the weights, and that no model reads.
_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|(^|\.)position_ids$|inv_freq$")


@dataclass(frozen=True)
class TensorHeader:
    """What a file says about one tensor: its dtype as safetensors write it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightIndex:
    """An index file: which file each tensor lies in.

    Attributes:
        path: The index file.
        files: For each tensor the name of its file, in the folder of the index.
    """

    path: Path
    files: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> WeightIndex:
        """Returns the index in a file.

        Raises:
            ValueError: not a JSON object, a `metadata` or `weight_map` that is not one, or an entry
                that is not the name of a file in the same folder.
        """
        values = read_json(path)
        # transformers needs the first too, for what it sets aside for the weights.
        for key, example in (("metadata", "total_size"), ("weight_map", "the file of each tensor")):
            if not isinstance(values.get(key), dict) or (key == "weight_map" and not values[key]):
                raise ValueError(
                    f"{path}: {key} is {shown(values.get(key))}; it must be an object with "
                    f"{example}"
                )
        for name, file in values["weight_map"].items():
            if not isinstance(file, str) or not file or Path(file).name != file:
                raise ValueError(
                    f"{path}: weight_map gives {name!r} the file {shown(file)}; it must be the "
                    "name of a file in the same folder"
                )
            if not is_there(path.with_name(file)):
                raise ValueError(
                    f"{path}: weight_map gives {name!r} the file {shown(file)}, which is missing; "
                    "copy or download it again"
                )
        return cls(path, values["weight_map"])


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Returns what the weight files of a Hugging Face folder say about each tensor.

    The files are those that transformers reads: one, or those of an index.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a damaged file, an index that does not fit its files, or weights that are whole
            numbers; the error names the file, the tensor and what was found.
    """
    for file in _FILES:
        if is_there(folder / file):
            return _headers_in(folder / file)
        if is_there(folder / f"{file}{_INDEX}"):
            return _headers_of(WeightIndex.load(folder / f"{file}{_INDEX}"))
    raise FileNotFoundError(
        f"the folder {str(folder)!r} holds no weights: it must hold {_FILES[0]}, or "
        f"{_FILES[0]}{_INDEX} and the files that it names"
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Returns the tensors in a `.pth` file; nothing in it is run.

    Raises:
        ValueError: a damaged file, one that holds something else than named tensors, or weights
            that are whole numbers.
    """
    state = _load(path, "cpu")
    for name, tensor in state.items():
        if is_weight(name) and not tensor.is_floating_point():
            raise _whole_numbers(path, name, str(tensor.dtype))
    return state


def is_weight(name: str) -> bool:
    """Returns whether a tensor of a HookedTransformer is trained: its leaf is a W, w or b."""
    return name.rpartition(".")[2].lstrip("_").split("_")[0] in ("W", "w", "b")


def held_by(tensors: Mapping[str, TensorHeader | Tensor], where: str) -> Held:
    """Returns how much the tensors of a model's files hold; `where` is what errors call them."""
    sizes = [torch.Size(tensor.shape).numel() for tensor in tensors.values()]
    return Held(where, len(sizes), sum(sizes))


def _headers_of(index: WeightIndex) -> dict[str, TensorHeader]:
    held = {
        name: _headers_in(index.path.with_name(name)) for name in sorted(set(index.files.values()))
    }
    listed = set(index.files.items())
    found = {(name, file) for file, headers in held.items() for name in headers}
    for name, file in sorted(listed ^ found):
        says = "says" if (name, file) in listed else "does not say"
        holds = "does not hold it" if (name, file) in listed else "holds it"
        raise ValueError(
            f"{index.path}: weight_map {says} that {name!r} is in {file!r}, which {holds}; copy or "
            "download them again"
        )
    return {name: held[file][name] for name, file in index.files.items()}


def _headers_in(path: Path) -> dict[str, TensorHeader]:
    found: dict[str, TensorHeader] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is not a dict)
                    part = file.get_slice(name)
                    found[name] = TensorHeader(part.get_dtype(), tuple(part.get_shape()))
        else:
            for name, tensor in _load(path, "meta").items():
                dtype = _FLOATS.get(tensor.dtype, str(tensor.dtype))
                found[name] = TensorHeader(dtype, tuple(tensor.shape))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); the file is cut off or damaged: copy or download it "
            "again"
        ) from error
    for name, header in found.items():
        if header.dtype not in _FLOATS.values() and not _BUFFERS.search(name):
            raise _whole_numbers(path, name, header.dtype)
    return found


def _load(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors in a pickled file on a device, `meta` for their shapes alone."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or an unsafe file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}); it is cut off, damaged, or holds "
            "code, which is never run: copy or download it again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict of named tensors, got a {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path} must hold a dict of named tensors; it has under the key {shown(name)} a "
                f"{type(tensor).__name__}"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{path}: {name!r} is not a plain tensor ({tensor.layout})")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {name!r} has the shape {list(tensor.shape)} but fewer numbers in the "
                "file; save it with .contiguous()"
            )
    return state


def _whole_numbers(path: Path, name: str, dtype: str) -> ValueError:
    return ValueError(
        f"{path}: {name!r} has the dtype {dtype}; weights must be floats "
        f"({', '.join(_FLOATS.values())}): quantized weights are not read, save them dequantized"
    )
