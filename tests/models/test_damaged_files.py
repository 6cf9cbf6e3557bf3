"""What is wrong with a user's file is said, with the file, the entry, and what is allowed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from circuits import load_bridge
from circuits.cli import main
from circuits.models.info import model_info
from circuits.models.load import load_model, named_weights
from circuits.sparsify.data import TextStream
from circuits.tasks import task_from_file
from tests.helpers import make_tiny_model, needs_hooked_transformer, word_tokenizer

HEADER = "clean,corrupted,answer,wrong_answer"


@pytest.fixture(autouse=True)
def time_bound() -> Iterator[None]:
    """A file that makes loading hang fails its test; what is refused here is refused at once."""

    def stop(*_: object) -> None:
        pytest.fail("not refused within a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good Hugging Face folder of a tiny GPT-2, with a gate card."""
    config = GPT2Config(
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=30,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "m")
    word_tokenizer(f"w{n}" for n in range(28)).save_pretrained(tmp_path / "m")
    (tmp_path / "m/gate.json").write_text('{"bias": 0.5}')
    return tmp_path / "m"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A good folder of HookedTransformer weights, with a config of its own kind."""
    folder = tmp_path / "c"
    folder.mkdir()
    model = make_tiny_model()
    names = "n_layers n_heads d_model d_head d_mlp d_vocab n_ctx act_fn normalization_type".split()
    config = {name: getattr(model.cfg, name) for name in names}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(dict(named_weights(model)), folder / "final.pth")
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(source: str | Path, message: str) -> None:
    """Loading, and telling what is known of it, are refused with the same words."""
    for read in (load_model, model_info):
        with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
            read(source)


def one_line(text: str) -> str:
    """What a terminal shows, without its frame and its line breaks."""
    return re.sub(r"[\s│]+", " ", text)


# ---- files that are not files --------------------------------------------------------------


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("name", ["gate.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("make", "what"),
    [(dangling, "a dangling link"), (Path.mkdir, "a folder"), (os.mkfifo, "a special file")],
    ids=["link", "folder", "pipe"],
)
def test_what_has_the_name_of_a_file_and_is_none_is_refused(
    folder: Path, name: str, make: Callable[[Path], None], what: str
) -> None:
    (folder / name).unlink()
    make(folder / name)
    refused(folder, f"{name} is {what}; it must be a regular file, or not be there")


def test_a_link_to_a_file_is_that_file(folder: Path, tmp_path: Path) -> None:
    (folder / "gate.json").rename(tmp_path / "elsewhere.json")
    (folder / "gate.json").symlink_to(tmp_path / "elsewhere.json")
    gate = model_info(folder).gate
    assert gate is not None and gate.bias == 0.5


@pytest.mark.parametrize(
    "name", ["~nobody_/x", "x" * 5000, "/" + "x" * 5000, "a/" + "x" * 300, "a\0b", "no good/name?"]
)
def test_a_name_that_no_path_can_have_is_refused_in_a_short_line(name: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_model(name)
    assert len(str(error.value)) < 600
    assert repr(name)[:20] in str(error.value)


def test_a_folder_as_text_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder; give one UTF-8 text file"):
        TextStream(tmp_path, word_tokenizer([]), context=8)
    code = main(["train", "--text", str(folder), "--out", str(tmp_path / "run")])
    assert code == 2
    assert "is a folder; give one UTF-8 text file" in one_line(capsys.readouterr().err)


# ---- config.json ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 0}, "n_head is 0; it must be a whole number from 1 to 2,147,483,647"),
        ({"n_head": -2}, "n_head is -2; it must be a whole number"),
        ({"n_layer": 2.0}, "n_layer is 2.0; it must be a whole number from 1 to 4,096"),
        ({"n_layer": True}, "n_layer is True; it must be a whole number"),
        ({"n_layer": 10**9}, "n_layer is 1000000000; it must be a whole number from 1 to 4,096"),
        ({"n_layer": 10**400}, "n_layer is an integer of 1329 bits; it must be"),
        ({"n_positions": 10**9}, "n_positions is 1000000000; it must be .* to 16,777,216"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; it must be .* to 65,536"),
        ({"vocab_size": "30"}, "vocab_size is '30'; it must be a whole number"),
        ({"dtype": "evil"}, "dtype is 'evil'; it must be one such as 'float32'"),
        ({"torch_dtype": [1]}, r"torch_dtype is the list \[1\]; it must be"),
        ({"architectures": "GPT2LMHeadModel"}, "architectures is 'GPT2LM.*must be a list of names"),
        ({"activation_function": "evil"}, "(makes no model|TransformerLens refuses) .*evil"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon"),
        ({"n_embd": 15}, "must be divisible"),
    ],
)
def test_a_value_that_no_model_has_is_refused_by_name(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "config.json", **changes)
    refused(folder, f"{folder}/config.json.*{message}")


def test_a_config_of_more_layers_than_there_are_tensors_is_refused(folder: Path) -> None:
    edit(folder / "config.json", n_layer=4000)
    with pytest.raises(
        ValueError, match="n_layer is 4000, but the weights in .* hold 2. tensors, less than one a"
    ):
        load_model(folder)


def test_a_config_of_wider_layers_than_there_are_numbers_is_refused(folder: Path) -> None:
    edit(folder / "config.json", n_inner=10**8)
    with pytest.raises(
        ValueError, match="n_inner is 100000000, but the weights in .* hold 7,584 numbers in all"
    ):
        load_model(folder)
    edit(folder / "config.json", n_inner=7000)  # no width by itself, but too much together
    with pytest.raises(ValueError, match="describes a model of 4.* weights, but .* hold 7,584"):
        load_model(folder)


def test_a_checkpoint_is_held_against_its_config_before_memory_is_taken(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", n_layers=4000)
    refused(checkpoint, "config.json: n_layers is 4000, but .*final.pth hold .* less than one a la")
    edit(checkpoint / "config.json", n_layers=2, d_mlp=10**9)
    refused(checkpoint, "config.json: d_mlp is 1000000000, but .*final.pth hold .* numbers in all")


def test_layers_in_the_patterns_of_gpt_neo_are_counted_first(tmp_path: Path) -> None:
    config = GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        vocab_size=30, max_position_embeddings=32,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", attention_types=[[["global", "local"], 10**9]])
    refused(tmp_path, "config.json: attention_types is the list .* repetitions, up to 4,096")


@pytest.mark.parametrize("name", ["config.json", "gate.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "lie too deep in each other"),
        ('{"a": 1, "a": 2}', "the key 'a' stands more than once in one object"),
        ("1" * 5000, "is not readable as JSON"),
        ("null", "must hold a JSON object, got None"),
        ('{"a": "\\ud800"}', "is not readable as JSON"),
    ],
    ids=["deep", "twice", "long", "null", "half a character"],
)
def test_json_that_has_to_be_guessed_at_is_refused(
    folder: Path, name: str, text: str, message: str
) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        load_model(folder)


# ---- gate.json -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"bias": 10**400}, "bias must be finite, got an integer of 1329 bits"),
        ({"satisfied": 1}, "satisfied must be true or false, got 1"),
        ({"density": {"overall": 0.5, "context": 8, "per_layer": 3}}, "per_layer must be a list"),
        ({"density": {"context": 8}}, "density: overall must be a number, got None"),
        ({"density": {"overall": 0.5}}, "density: context must be a whole number of tokens"),
        ({"density": {"overall": 0.5, "context": 8.5}}, "context must be a whole .*, got 8.5"),
        ({"training": {"config": [1]}}, r"training: config must be an object, got the list \[1\]"),
        ({"versions": {"torch": 2}}, "versions: torch must be text, got 2"),
    ],
)
def test_an_entry_that_no_card_has_is_refused_by_name(
    folder: Path, entries: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "gate.json", **entries)
    refused(folder, f"{folder}/gate.json: .*{message}")
    assert main(["models", str(folder)]) == 2
    assert re.search(message, one_line(capsys.readouterr().err))


# ---- weights -------------------------------------------------------------------------------


def change_weights(path: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_whole_numbers_are_refused(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    change_weights(path, **{"transformer.wpe.weight": torch.ones(32, 16).to(dtype)})
    with pytest.raises(
        ValueError, match=r"safetensors: 'transformer.wpe.weight' has the dtype [IBF].*F32"
    ):
        load_model(folder)


def test_masks_that_older_versions_saved_are_no_weights(folder: Path) -> None:
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
    change_weights(folder / "model.safetensors", **{"transformer.h.0.attn.bias": mask})
    assert load_model(folder).cfg.n_layers == 2


def change_checkpoint(path: Path, change: Callable[[dict[Any, Any]], Any]) -> None:
    state = torch.load(path)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (3, torch.ones(2), "it has under the key 3 a Tensor"),
        ("evil", [1], "it has under the key 'evil' a list"),
        ("embed.W_E", torch.ones(30, 16, dtype=torch.int8), "'embed.W_E' has the dtype torch.int8"),
        ("embed.W_E", torch.ones(30, 1).expand(30, 16), "but fewer numbers in the file"),
        ("embed.W_E", torch.ones(30, 16).to_sparse(), "is not a plain tensor"),
    ],
    ids=["key", "list", "whole numbers", "expanded", "sparse"],
)
def test_a_checkpoint_of_something_else_is_refused(
    checkpoint: Path, key: Any, value: Any, message: str
) -> None:
    change_checkpoint(checkpoint / "final.pth", lambda state: state.__setitem__(key, value))
    refused(checkpoint, f"final.pth.*{message}")


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same folder with its weights in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(sorted(weights))}
    for file in ("model-0.safetensors", "model-1.safetensors"):
        held = {name: weights[name] for name in weights if files[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_weights_in_several_files_are_read(sharded: Path) -> None:
    assert load_model(sharded).cfg.n_layers == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": None}, "metadata is None; it must be an object"),
        ({"weight_map": ["x"]}, r"weight_map is the list \['x'\]; it must be an object"),
        ({"weight_map": {}}, r"weight_map is the dict {}; it must be an object"),
        ({"weight_map": {"a": ""}}, "gives 'a' the file ''; it must be the name of a file"),
        (
            {"weight_map": {"a": 3}},
            "weight_map gives 'a' the file 3; it must be the name of a file",
        ),
        (
            {"weight_map": {"a": "../m/model-0.safetensors"}},
            "must be the name of a file in the same",
        ),
        ({"weight_map": {"a": "model-7.safetensors"}}, "'model-7.safetensors', which is missing"),
        ({"weight_map": {"a": "model-0.safetensors"}}, "weight_map says that 'a' is in 'model-0"),
    ],
)
def test_a_broken_index_is_refused(sharded: Path, changes: dict[str, Any], message: str) -> None:
    edit(sharded / "model.safetensors.index.json", **changes)
    with pytest.raises(ValueError, match=f"model.safetensors.index.json: .*{message}"):
        load_model(sharded)


def test_an_index_that_leaves_out_a_tensor_is_refused(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    files = json.loads(path.read_text())["weight_map"]
    del files["transformer.wpe.weight"]
    edit(path, weight_map=files)
    with pytest.raises(
        ValueError, match="does not say that 'transformer.wpe.weight' is in 'model-"
    ):
        load_model(sharded)


# ---- tokenizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}", "[1]", '{"model": 3}', ""])
def test_a_tokenizer_file_of_something_else_is_refused(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{folder}/tokenizer.json"):
        load_model(folder)


@pytest.mark.parametrize("read", [load_model, load_bridge])
def test_a_tokenizer_of_another_model_is_refused(folder: Path, read: Callable[..., Any]) -> None:
    word_tokenizer(f"w{n}" for n in range(40)).save_pretrained(folder)
    with pytest.raises(
        ValueError,
        match=r"the tokenizer in .*/m gives ids up to 41 \('w39'\), but the model has a vocabulary "
        "of 30, ids 0 to 29",
    ):
        read(folder)


# ---- task files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER},clean\na,b,c,d,e\n", "the header has the column 'clean' 2 times"),
        (f"{HEADER},template\na,b,c,d,t\na,b,c,d, \n", "row 2 has a blank 'template'"),
        (f"{HEADER},template\na,b,c,d,\n", "row 1 has no text in the column 'template'"),
        (f"{HEADER}\na,b,c,d,e\n", "row 1 has 5 cells, the header 4; quote a text that holds a co"),
        (f"{HEADER}\na,b,c\n", "row 1 has 3 cells, the header 4"),
        (f'{HEADER}\n"a,b,c,d\n', "line 2 is not CSV: unexpected end of data"),
        (f"{HEADER}\n", "holds no prompt pairs"),
        ("", "lacks the columns clean, corrupted, answer, wrong_answer; it has none"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_csv_file_that_has_to_be_guessed_at_is_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        task_from_file(path)


def json_row(**changes: Any) -> str:
    row = {"clean": "a", "corrupted": "b", "answer": "c", "wrong_answer": "d"}
    return json.dumps({key: value for key, value in (row | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[1, 2]"], r"row 1 must hold a JSON object, got the list \[1, 2\]"),
        ([json_row(), "3"], "row 2 must hold a JSON object, got 3"),
        (["null"], "row 1 must hold a JSON object, got None"),
        (["{"], "row 1 is not readable as JSON"),
        (["[" * 100_000], "row 1 is not readable as JSON: lists or objects lie too deep"),
        (
            [json_row(clean=...)],
            "row 1 lacks the columns clean; it has corrupted, answer, wrong_an",
        ),
        ([json_row(answer=3)], "row 1 has no text in the column 'answer', but 3"),
        ([json_row(), json_row(template="t")], "row 2 has a column 'template', unlike the rows"),
        ([json_row(template="t"), json_row()], "row 2 has no column 'template', unlike the rows"),
        ([json_row(template=None)], "row 1 has no text in the column 'template', but None"),
        (['{"clean": "a", "clean": "b"}'], "row 1 .* the key 'clean' stands more than once"),
        ([], "holds no prompt pairs"),
    ],
)
def test_a_line_that_is_no_pair_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        task_from_file(path)


def test_a_folder_as_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").mkdir()
    with pytest.raises(ValueError, match="mine.csv is a folder"):
        task_from_file(tmp_path / "mine.csv")


def test_cells_are_texts_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f'\ufeff{HEADER},template\n"a, ""b""",NA,01, x,t\n\n', encoding="utf-8")
    (pair,) = task_from_file(path).pairs(word_tokenizer([]), 1, 0)
    assert (pair.clean, pair.corrupted, pair.template) == ('a, "b"', "NA", "t")
    assert (pair.answers, pair.wrong_answers) == (("01",), (" x",))


# ---- code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("trust", [False, True])
def test_code_in_a_folder_is_not_run(folder: Path, file: str, trust: bool) -> None:
    ran = folder.parent / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    auto_map: Any = {name: f"evil.{name}" for name in names}
    auto_map["AutoTokenizer"] = ["evil.AutoTokenizer", "evil.AutoTokenizer"]
    edit(folder / file, auto_map=auto_map)
    load_model(folder, trust_remote_code=trust)
    model_info(folder, trust_remote_code=trust)
    assert not ran.exists()


class Fetched(OSError):
    """Stands for the network, which no test may ask."""


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Records what would be fetched, with the arguments, and refuses it."""
    fetch = Mock(side_effect=Fetched("nothing is fetched in tests"))
    for name in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", fetch)
    for base in (AutoModelForCausalLM.__mro__[1], transformers.PreTrainedModel):
        monkeypatch.setattr(base, "from_pretrained", fetch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return fetch


@needs_hooked_transformer
@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen-1_8B", "qwen-7b", "Qwen/Qwen3-0.6B", "phi-1", "microsoft/phi-2", "microsoft/phi-4"]
    + ["santacoder"],
)
def test_names_that_run_code_from_the_hub_are_refused_before_anything_is_fetched(
    name: str, fetches: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="runs? Python code from .* --trust-remote-code"):
        load_model(name)
    assert main(["discover", "--model", name]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    assert not fetches.called


@needs_hooked_transformer
def test_code_from_the_hub_is_run_when_it_is_asked_for(fetches: Mock) -> None:
    with pytest.raises(FileNotFoundError, match="could not get the model 'qwen-7b'"):
        load_model("qwen-7b", trust_remote_code=True)
    assert fetches.call_args.kwargs["trust_remote_code"] is True


def test_no_other_name_is_fetched_with_its_code(fetches: Mock) -> None:
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    for name in OFFICIAL_MODEL_NAMES:
        for read in (load_model, load_bridge, model_info):
            with pytest.raises((ValueError, FileNotFoundError, NotImplementedError)):
                read(name)
    assert fetches.call_count > 300
    trusted = [call for call in fetches.call_args_list if call.kwargs.get("trust_remote_code")]
    assert not trusted


@needs_hooked_transformer
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # TransformerLens leaves a file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_weights_of_transformer_lens_are_read_without_running_what_they_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    config = {
        "d_model": 16, "n_layers": 1, "d_mlp": 32, "d_head": 8, "n_heads": 2, "n_ctx": 8,
        "d_vocab": 30, "act_fn": "gelu", "attn_only": False, "normalization_type": "LN",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"embed.W_E": Evil()}, tmp_path / "final.pth")

    def download(*_: Any, filename: str, **__: Any) -> str:
        return str(tmp_path / filename)

    monkeypatch.setattr("transformer_lens.utilities.hf_utils.hf_hub_download", download)
    api = Mock()
    api.return_value.list_repo_files.return_value = ["final.pth"]
    monkeypatch.setattr("transformer_lens.loading_from_pretrained.HfApi", api)
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with pytest.raises(Exception, match="Weights only load failed|weights_only"):
        load_model("gelu-1l")
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
