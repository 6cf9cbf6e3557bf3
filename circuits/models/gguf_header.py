"""What a GGUF file says about itself, read without its weights: a model's sizes and quantisation.

GGUF is llama.cpp's one-file format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
named values, then for each tensor its name, shape, type and place, then the tensors. The reader of
the `gguf` package believes every count in it, and one damaged byte can make it count to 2^64; so
the file is walked through here first, and nothing in it may reach beyond its end.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from circuits.reading import is_there, shown

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_LEAST_SHARE = 0.005  # of the weights, for a type to be named


@dataclass(frozen=True)
class GGUFTensor:
    """What a GGUF file says about one tensor: its type (`Q4_1`), and the numbers that it holds."""

    type: str
    n_elements: int


@dataclass(frozen=True)
class GGUFHeader:
    """What stands before the weights of a GGUF file.

    Attributes:
        values: The named values that are not lists: numbers, truth values and texts.
        tensors: The tensors by name.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    @property
    def n_elements(self) -> int:
        """The numbers in all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors.values())

    @property
    def quantization(self) -> str:
        """The types of the weights, the most frequent first, each with its share of all numbers."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.type] += tensor.n_elements
        shares = {name: count / self.n_elements for name, count in counts.most_common()}
        return ", ".join(
            f"{name} {share:.0%}" for name, share in shares.items() if share >= _LEAST_SHARE
        )


def read_header(path: Path) -> GGUFHeader:
    """Returns the header of a GGUF file, after checking that all it speaks of is in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a GGUF file, of a version that is not read, cut off or damaged.
    """
    if not is_there(path):
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(
                f"{path} is not a GGUF file (it does not begin with {_MAGIC.decode()}); give a "
                ".gguf file, or the folder of a Hugging Face model"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Walk(content).header()
            except (struct.error, ValueError, IndexError) as error:
                raise ValueError(
                    f"{path} is cut off or damaged ({error}); copy or download it again"
                ) from error


@cache
def _types() -> dict[int, tuple[str, int, int]]:
    """For each type of tensor its name, the numbers in a block, and a block's bytes."""
    from gguf import GGML_QUANT_SIZES  # takes a while, and few models are GGUF files

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


class _Walk:
    """A place in the file that moves on with each value read; past the end is an error."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._place = len(_MAGIC)

    def header(self) -> GGUFHeader:
        (version,) = self._numbers("I")
        if version not in _VERSIONS:
            raise ValueError(
                f"its version is {version}, where {_VERSIONS[0]} and {_VERSIONS[1]} are read, "
                "with the lowest byte first"
            )
        n_tensors, n_values = self._numbers("QQ")
        values: dict[str, Any] = {}
        for _ in range(n_values):
            name = self._text()
            if name in values:
                raise ValueError(f"{shown(name)} stands in it twice")
            values[name] = self._value(*self._numbers("I"))
        placed: dict[str, tuple[GGUFTensor, int, int]] = {}
        for _ in range(n_tensors):
            name = self._text()
            if name in placed:
                raise ValueError(f"the tensor {shown(name)} stands in it twice")
            placed[name] = self._tensor(name)
        self._check_data(placed, values.get("general.alignment", 32))
        kept = {name: value for name, value in values.items() if value is not None}
        return GGUFHeader(kept, {name: tensor for name, (tensor, *_) in placed.items()})

    def _check_data(self, placed: Mapping[str, tuple[GGUFTensor, int, int]], align: Any) -> None:
        if not isinstance(align, int) or align < 1 or align & (align - 1):
            raise ValueError(f"general.alignment is {shown(align)}, and no power of two")
        if not placed:
            raise ValueError("it holds no tensors")
        start = -(-self._place // align) * align
        for name, (_, offset, n_bytes) in placed.items():
            if start + offset + n_bytes > len(self._content):
                raise ValueError(
                    f"the tensor {shown(name)} ends at byte {start + offset + n_bytes:,}, the file "
                    f"at {len(self._content):,}"
                )

    def _tensor(self, name: str) -> tuple[GGUFTensor, int, int]:
        """The next tensor, its offset and its size in bytes."""
        (n_dimensions,) = self._numbers("I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {shown(name)} has {n_dimensions} dimensions")
        shape = self._numbers("Q" * n_dimensions)
        number, offset = self._numbers("IQ")
        if number not in _types():
            raise ValueError(f"the tensor {shown(name)} has the type {number}, which is unknown")
        kind, block, n_bytes = _types()[number]
        n_elements = math.prod(shape)
        if n_elements % block or not n_elements:
            raise ValueError(
                f"the tensor {shown(name)} has the shape {list(shape)}, which is not a "
                "whole number "
                f"of blocks of {kind}"
            )
        return GGUFTensor(kind, n_elements), offset, n_elements // block * n_bytes

    def _value(self, kind: int) -> Any:
        """The next value; None for a list, which is passed over."""
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a value has the type {kind}")
        inner, length = self._numbers("IQ")
        if inner in _SCALARS:
            self._bytes(struct.calcsize(f"<{_SCALARS[inner]}") * length)
        else:
            for _ in range(length):  # each moves on by at least 8 bytes, or is an error
                if inner != _STRING:
                    raise ValueError(f"a list has elements of the type {inner}")
                self._bytes(*self._numbers("Q"))
        return None

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        start = self._bytes(length)
        return self._content[start : start + length].decode()

    def _numbers(self, format: str) -> tuple[Any, ...]:
        format = f"<{format}"
        return struct.unpack_from(format, self._content, self._bytes(struct.calcsize(format)))

    def _bytes(self, count: int) -> int:
        """Moves on by so many bytes and returns where they begin."""
        start = self._place
        if start + count > len(self._content):
            raise ValueError(f"the file ends at byte {len(self._content):,}, within its header")
        self._place += count
        return start
