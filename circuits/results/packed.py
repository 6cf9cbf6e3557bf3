"""Circuits and arrays in few characters of JSON, for files that hold many of them.

`Circuit.save` names every edge, which other tools read: 10 MB for the 123,000 edges of a model of
30 layers, and a comparison holds a dozen such circuits. Here an array is its numbers,
little-endian, compressed (zlib) and in base64, with its shape and type: they come back to the last
bit.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.graph import Graph
from circuits.results.circuit import AttentionEdge, Circuit

_TYPES = ("bool", "float32", "float64")


def pack(array: Tensor | np.ndarray) -> dict[str, Any]:
    """Returns an array of any shape as plain values.

    Raises:
        ValueError: a number is not finite, or is not a float32, a float64 or a bool.
    """
    numbers = array.cpu().numpy() if isinstance(array, Tensor) else array
    if numbers.dtype.name not in _TYPES:
        raise ValueError(f"an array of {numbers.dtype.name} cannot be packed; give floats or bools")
    if not np.isfinite(numbers).all():
        raise ValueError("an array has numbers that are not finite, so it is not saved")
    little = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))
    packed = base64.b64encode(zlib.compress(little.tobytes())).decode()
    return {"shape": list(numbers.shape), "type": numbers.dtype.name, "zlib": packed}


def unpack(content: dict[str, Any]) -> np.ndarray:
    """Returns the array that `pack` wrote.

    Raises:
        ValueError: it is damaged.
    """
    shape, kind = content["shape"], content["type"]
    if kind not in _TYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"a packed array has the type {kind!r} and the shape {shape!r}")
    dtype = np.dtype(kind).newbyteorder("<")
    n_bytes = math.prod(shape) * dtype.itemsize
    try:
        # No more than the shape says is ever unpacked, whatever the file holds.
        found = zlib.decompressobj().decompress(
            base64.b64decode(content["zlib"], validate=True), n_bytes + 1
        )
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"a packed array is damaged ({error})") from error
    if len(found) != n_bytes:
        raise ValueError(f"a packed array has not the {n_bytes} bytes of its shape {shape}")
    numbers = np.frombuffer(found, dtype).reshape(shape).astype(kind)
    if not np.isfinite(numbers).all():
        raise ValueError("a packed array has numbers that are not finite")
    return numbers


def pack_circuit(circuit: Circuit) -> dict[str, Any]:
    """Returns a circuit as plain values, its matrices packed.

    Raises:
        ValueError: a score is not finite.
    """
    return {
        "graph": list(astuple(circuit.graph)),
        "granularity": circuit.granularity,
        **{name: pack(getattr(circuit, name)) for name in ("nodes", "edges", "scores")},
        "attention_edges": {
            template: [list(astuple(edge)) for edge in chosen]
            for template, chosen in circuit.attention_edges.items()
        },
        "provenance": circuit.provenance,
    }


def unpack_circuit(content: dict[str, Any]) -> Circuit:
    """Returns the circuit that `pack_circuit` wrote, or that `Circuit.to_json` did.

    Raises:
        ValueError: it is damaged.
    """
    if "graph" not in content:
        return Circuit.from_json(content)
    graph = Graph(*content["graph"])
    nodes, edges, scores = (
        torch.from_numpy(unpack(content[name])) for name in ("nodes", "edges", "scores")
    )
    shapes = tuple(array.shape for array in (nodes, edges, scores))
    if shapes != ((graph.n_sources,), graph.mask.shape, graph.mask.shape):
        raise ValueError("a packed circuit is not of its graph")
    if nodes.dtype != torch.bool or edges.dtype != torch.bool or (edges & ~graph.mask).any():
        raise ValueError("a packed circuit has edges that its graph does not have")
    return Circuit(
        graph=graph,
        granularity=content["granularity"],
        nodes=nodes,
        edges=edges,
        scores=scores,
        attention_edges={
            template: [AttentionEdge(*edge) for edge in chosen]
            for template, chosen in content["attention_edges"].items()
        },
        provenance=content["provenance"],
    )


def pack_lists(lists: Sequence[Any]) -> dict[str, Any]:
    """Returns lists in lists of numbers, packed: as float32 where that is exact.

    Raises:
        ValueError: lists of one depth differ in length, or a number is not finite.
    """
    numbers = np.asarray(lists, np.float64)
    short = numbers.astype(np.float32)
    return pack(short if (short == numbers).all() else numbers)


def unpack_lists(content: Any) -> list[Any]:
    """Returns what `pack_lists` wrote; lists are returned as they are."""
    return content if isinstance(content, list) else unpack(content).tolist()
