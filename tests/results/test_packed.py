"""Packed circuits and arrays: the same bits again, or a refusal in words."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuits.graph import Graph
from circuits.results.comparison_file import load_comparison, save_comparison
from circuits.results.packed import (
    pack,
    pack_circuit,
    pack_lists,
    unpack,
    unpack_circuit,
    unpack_lists,
)
from tests.fake_comparison import EDGES, make_circuit, make_comparison

ARRAYS = (
    np.array([[0.1, -1e-38, 3e38], [0.0, 1.0, 2**-149]], np.float32),
    np.array([0.1, 1e300]),
    np.array([[[True], [False], [True]]]),
    np.zeros((0, 3)),
    np.array(2.5),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4.0).astype(">f8"),
)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_an_array_comes_back_to_the_last_bit(array):
    again = unpack(json.loads(json.dumps(pack(array))))
    assert again.shape == array.shape and again.dtype.name == array.dtype.name
    assert again.tobytes() == array.astype(again.dtype).tobytes()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_is_neither_packed_nor_unpacked(number):
    with pytest.raises(ValueError, match="not finite, so it is not saved"):
        pack(torch.tensor([1.0, number]))
    foreign = base64.b64encode(zlib.compress(np.array([number]).tobytes())).decode()
    with pytest.raises(ValueError, match="has numbers that are not finite"):
        unpack(pack(np.array([7.0])) | {"zlib": foreign})


def test_lists_come_back_as_they_were():
    exact, long = [[0.5, 0.25], [1.0, 0.0]], [[0.1, 1 / 3]]
    assert pack_lists(exact)["type"] == "float32"
    for lists in (exact, long):
        assert unpack_lists(json.loads(json.dumps(pack_lists(lists)))) == lists
        assert unpack_lists(lists) == lists


@pytest.mark.parametrize("granularity", ["head", "edge", "attention_edge"])
def test_a_circuit_comes_back_and_so_does_one_that_names_its_edges(granularity):
    graph = Graph(2, 2, parallel_attn_mlp=granularity == "head", d_model=8)
    circuit = replace(
        make_circuit({"input->a0.h0<v>": 0.1, "a0.h0->logits": -3e-7}, granularity, graph),
        provenance={"task": "a task", "faithfulness": 0.9},
    )
    for form in (pack_circuit(circuit), circuit.to_json()):
        again = unpack_circuit(json.loads(json.dumps(form)))
        assert again == circuit and again.graph.d_model == 8


def changed(**changes):
    return pack_circuit(make_circuit(EDGES["dense"])) | changes


EVERYWHERE = torch.ones_like(make_circuit(EDGES["dense"]).edges)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (changed(scores=pack(np.zeros((2, 2)))), "not of its graph"),
        (changed(edges=pack(EVERYWHERE)), "edges that its graph does not have"),
        (changed(edges=pack(EVERYWHERE.float())), "edges that its graph does not have"),
        (changed(graph=[3, 2, True, False, None]), "not of its graph"),
        (changed(nodes={"shape": [2], "type": "bool", "zlib": "eJw="}), "has not the 2 bytes"),
        (changed(nodes={"shape": [7], "type": "bool", "zlib": "%"}), "is damaged"),
        (changed(nodes={"shape": [7], "type": "bool", "zlib": "AAAA"}), "is damaged"),
        (changed(nodes={"shape": [7], "type": "object", "zlib": ""}), "the type 'object'"),
        (changed(nodes={"shape": [-7], "type": "bool", "zlib": ""}), "the shape"),
        # Ten million numbers in ten thousand bytes: no more than the shape says is unpacked.
        (changed(nodes=pack(np.zeros(10**7, bool)) | {"shape": [7]}), "has not the 7 bytes"),
    ],
)
def test_a_damaged_circuit_is_refused(content, word):
    with pytest.raises(ValueError, match=word):
        unpack_circuit(content)


def test_a_comparison_whose_circuits_name_their_edges_is_read(tmp_path):
    comparison = make_comparison(tasks=("ioi",), granularities=("head", "edge"))
    save_comparison(comparison, tmp_path / "new.json")
    content = json.loads((tmp_path / "new.json").read_text()) | {"format": 5}
    for side, discovery in content["discoveries"]["ioi"].items():
        for granularity, evidence in discovery["found"].items():
            circuit = comparison.discoveries["ioi"][side].circuits[granularity].circuit
            evidence["circuit"] = circuit.to_json()
    for example, read in zip(content["examples"]["ioi"], comparison.examples["ioi"], strict=True):
        example["patterns"] = read.patterns
    (tmp_path / "old.json").write_text(json.dumps(content))
    old, new = (load_comparison(tmp_path / f"{name}.json") for name in ("old", "new"))
    assert repr(old.discoveries) == repr(new.discoveries) and old.examples == new.examples
    for side, discovery in new.discoveries["ioi"].items():
        for granularity, evidence in discovery.circuits.items():
            circuit = old.discoveries["ioi"][side].circuits[granularity].circuit
            assert circuit == evidence.circuit
