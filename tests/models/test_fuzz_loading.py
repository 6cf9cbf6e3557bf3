"""Files that were damaged, or made to do harm: loading them works, or says what is wrong.

Each case changes one file of a good folder: a value in its JSON, a few bytes, its end, its kind.
Loading then gives a model, or raises one of the errors that the package promises, with the name of
a file in it; it ends soon, and leaves nothing behind. Hypothesis draws the changes, the same ones
on every run. A plain run tries a few; `pytest -m fuzz` tries 500.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from circuits.gate.card import GateCard
from circuits.models.info import model_info
from circuits.models.load import from_hf, load_model, named_weights
from circuits.tasks import task_from_file
from tests.helpers import make_tiny_model, word_tokenizer

SECONDS = 60  # for one case; a good folder takes less than one on an idle core
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 30}
ROWS = [
    {
        "clean": f"w1 w{n}",
        "corrupted": f"w2 w{n}",
        "answer": "w3",
        "wrong_answer": "w4",
        "template": "t",
    }
    for n in range(5, 9)
]


def write_gpt2(folder: Path) -> None:
    GPT2LMHeadModel(
        GPT2Config(n_positions=16, n_embd=8, n_layer=2, n_head=2, **SPECIAL)
    ).save_pretrained(folder)


def write_llama(folder: Path) -> None:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        **SPECIAL,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_sharded(folder: Path) -> None:
    write_gpt2(folder)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    files = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(names)}
    for file in set(files.values()):
        held = {name: weights[name] for name in names if files[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_own_checkpoint(folder: Path) -> None:
    folder.mkdir()
    model = make_tiny_model(d_model=8, d_head=4, d_mlp=16, n_ctx=16)
    names = "n_layers n_heads d_model d_head d_mlp d_vocab n_ctx act_fn normalization_type".split()
    config = {name: getattr(model.cfg, name) for name in names} | {"gate_bias": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(dict(named_weights(model)), folder / "final.pth")


def write_gpt2_checkpoint(folder: Path) -> None:
    config = GPT2Config(n_positions=16, n_embd=8, n_layer=2, n_head=2, **SPECIAL)
    config.save_pretrained(folder)
    model = from_hf(GPT2LMHeadModel(config), None)
    torch.save(dict(named_weights(model)), folder / "final.pth")


KINDS: dict[str, Callable[[Path], None]] = {
    "gpt2": write_gpt2,
    "llama": write_llama,
    "sharded": write_sharded,
    "own": write_own_checkpoint,
    "published": write_gpt2_checkpoint,
}
LAYOUTS = {  # the files of each kind, and the changes that make sense for each of them
    "gpt2": ["config.json", "gate.json", "model.safetensors", "tokenizer.json"],
    "llama": ["config.json", "tokenizer_config.json"],
    "sharded": ["model.safetensors.index.json", "model-0.safetensors"],
    "own": ["config.json", "final.pth"],
    "published": ["config.json", "final.pth"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good folder of each kind, with a tokenizer and a gate card."""
    found: dict[str, Path] = {}
    card = GateCard(
        bias=-0.25,
        tau=1.0,
        satisfied=True,
        density={"overall": 0.25, "per_layer": [0.25, 0.25], "context": 16},
        training={"config": {"steps": 3}},
        versions={"torch": "2"},
    )
    for kind, write in KINDS.items():
        folder = tmp_path_factory.mktemp("good") / kind
        write(folder)
        word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(folder)
        card.save(folder)
        load_model(folder)
        model_info(folder)
        found[kind] = folder
    return found


ODD_VALUES = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, 3, 7, 31, 10**9, 2**31, 2**63, 10**400, 0.5, -2.5, 2.0,
        1e400, float("nan"), "", "evil", "2", "float32", "torch.int8", "../../x", "x" * 900,
        "\ud800", "w1\x00", "os.system", [], [0], [[]], ["evil"], [[["global"], 10**9]], {},
        {"": 1}, {"evil": {"evil": []}}, {"0": 0},
    ]
).map(copy.deepcopy)  # fmt: skip
MORE_KEYS = st.sampled_from(
    "auto_map architectures dtype torch_dtype n_layer num_hidden_layers n_head n_inner head_dim "
    "rope_scaling rope_parameters layer_types quantization_config tokenizer_class tokenizer_name "
    "attention_types activation_function hidden_act attn_implementation model_type gate_bias "
    "num_key_value_heads sliding_window tie_word_embeddings bos_token pad_token added_tokens "
    "id2label num_labels n_ctx d_vocab attn_types act_fn evil".split()
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value, and to the value itself."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any, *, delete: bool) -> Any:
    if not path:
        return new
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if delete:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return value


def change_json(path: Path, draw: st.DataObject) -> None:
    """Changes, deletes or adds one to three values."""
    content = json.loads(path.read_text())
    for _ in range(draw.draw(st.integers(1, 3))):
        spots = list(places(content))
        spot = draw.draw(st.sampled_from(spots))
        how = draw.draw(st.sampled_from(["replace", "replace", "delete", "add"]))
        if how == "add" and isinstance(content, dict):
            content[draw.draw(MORE_KEYS)] = draw.draw(ODD_VALUES)
        else:
            content = replaced(content, spot, draw.draw(ODD_VALUES), delete=how == "delete")
    path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")


def change_bytes(path: Path, draw: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    # Headers, where bytes mean something, stand in front of weights.
    last = min(len(content), 3000) - 1 if draw.draw(st.booleans()) else len(content) - 1
    for _ in range(draw.draw(st.integers(1, 4))):
        if content:
            where = min(draw.draw(st.integers(0, max(0, last))), len(content) - 1)
            content[where] = draw.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))


def cut(path: Path, draw: st.DataObject) -> None:
    os.truncate(path, draw.draw(st.integers(0, path.stat().st_size)))


def change_kind(path: Path, draw: st.DataObject) -> None:
    path.unlink()
    kind = draw.draw(st.sampled_from(["folder", "link", "loop", "pipe", "gone"]))
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)


def write_odd_text(path: Path, draw: st.DataObject) -> None:
    path.write_text(
        draw.draw(
            st.sampled_from(
                [
                    "", "{}", "[]", "null", "3", '"x"', "{" * 9, "[" * 100_000, '{"a":' * 60_000,
                    "1" * 5000, '{"bias": 0, "bias": 1}', "\ufeff{}", "{'a': 1}", '{"a": NaN}',
                ]
            )
        )
    )  # fmt: skip


def change_tensors(path: Path, draw: st.DataObject) -> None:
    """Casts, reshapes, renames, drops or adds one tensor."""
    is_pickled = path.suffix == ".pth"
    state: dict[Any, Any] = torch.load(path) if is_pickled else load_file(path)
    name = draw.draw(st.sampled_from(sorted(state)))
    tensor = state[name]
    how = draw.draw(st.sampled_from("cast flatten rename drop add nan other".split()))
    if how == "cast":
        kinds = (torch.int8, torch.int64, torch.bool, torch.float64, torch.float16)
        state[name] = tensor.to(draw.draw(st.sampled_from(kinds)))
    elif how == "flatten":
        state[name] = tensor.flatten()
    elif how == "rename":
        state["evil.W_E"] = state.pop(name)
    elif how == "drop":
        del state[name]
    elif how == "add":
        state["evil.weight"] = torch.ones(2)
    elif how == "nan":
        state[name] = tensor * float("nan")
    elif is_pickled:
        claimed = torch.zeros(1).expand(10**12)  # a file of four bytes that claims terabytes
        odd = {3: tensor, None: tensor, "evil": [tensor], name: claimed}
        key = draw.draw(st.sampled_from(list(odd)))
        state[key] = odd[key]
    if is_pickled:
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)


def change_file(path: Path, draw: st.DataObject) -> None:
    changes = [change_bytes, cut, change_kind]
    if path.suffix == ".json":
        changes += [change_json] * 7 + [write_odd_text]
    else:
        changes += [change_tensors] * 4
    draw.draw(st.sampled_from(changes))(path, draw)


class TooSlow(BaseException):
    """Not an Exception: no handler of the code under test may swallow it."""


@contextmanager
def bounded() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_outcome(act: Callable[[], Any], folder: Path, names: list[str]) -> None:
    """`act` works, or raises an error of ours that names one of the files; nothing is left."""
    temporary = folder.parent / "tmp"
    temporary.mkdir()
    before = listing(folder)
    with pytest.MonkeyPatch.context() as patch, bounded():
        patch.setattr(tempfile, "tempdir", str(temporary))
        try:
            act()
        except (ValueError, FileNotFoundError, OSError) as error:
            text = str(error)
            assert any(name in text for name in (*names, str(folder))), repr(error)
            assert len(text) < 3000, "an error of pages is not read"
            assert type(error) in (ValueError, FileNotFoundError), repr(error)
    assert listing(folder) == before
    assert not list(temporary.iterdir())


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.lstat().st_size) for path in folder.iterdir())


def load_changed_model(folders: dict[str, Path], draw: st.DataObject) -> None:
    kind = draw.draw(st.sampled_from(sorted(folders)))
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / kind
        shutil.copytree(folders[kind], folder)
        names = [path.name for path in folder.iterdir()]
        change_file(folder / draw.draw(st.sampled_from(LAYOUTS[kind])), draw)

        def act() -> None:
            model_info(folder)
            load_model(folder)

        check_outcome(act, folder, names)


def load_changed_task(draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "rows"
        folder.mkdir()
        if draw.draw(st.booleans()):
            path = folder / "mine.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
            if draw.draw(st.booleans()):
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                odd = draw.draw(ODD_VALUES)
                spot = draw.draw(st.sampled_from(list(places(rows))[1:]))
                rows = replaced(rows, spot, odd, delete=draw.draw(st.booleans()))
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            else:
                draw.draw(st.sampled_from([change_bytes, cut, change_kind, write_odd_text]))(
                    path, draw
                )
        else:
            path = folder / "mine.csv"
            lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]
            line = draw.draw(st.integers(0, len(lines) - 1))
            cells = lines[line].split(",")
            cell = draw.draw(st.integers(0, len(cells) - 1))
            odd_cells = ["", " ", '"', '"x', "a,b", "clean", "\x00", "x" * 200_000, '"a\nb"']
            cells[cell] = draw.draw(st.sampled_from(odd_cells))
            lines[line] = ",".join(cells)
            path.write_text("\n".join(lines))
            if draw.draw(st.booleans()):
                draw.draw(st.sampled_from([change_bytes, cut, change_kind]))(path, draw)

        check_outcome(lambda: task_from_file(path), folder, [path.name])


def fuzz(n_cases: int) -> settings:
    """Seeded, and without a deadline or a database; a case has a time bound of its own."""
    return settings(
        max_examples=n_cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # A failure is shown as drawn: shrinking loads for minutes.
        suppress_health_check=cast("list[HealthCheck]", list(HealthCheck)),
    )


@fuzz(30)
@given(st.data())
def test_a_changed_model_loads_or_says_why_not(
    folders: dict[str, Path], data: st.DataObject
) -> None:
    load_changed_model(folders, data)


@fuzz(15)
@given(st.data())
def test_a_changed_task_file_loads_or_says_why_not(data: st.DataObject) -> None:
    load_changed_task(data)


@pytest.mark.fuzz
@fuzz(400)
@given(st.data())
def test_many_changed_models_load_or_say_why_not(
    folders: dict[str, Path], data: st.DataObject
) -> None:
    load_changed_model(folders, data)


@pytest.mark.fuzz
@fuzz(100)
@given(st.data())
def test_many_changed_task_files_load_or_say_why_not(data: st.DataObject) -> None:
    load_changed_task(data)
