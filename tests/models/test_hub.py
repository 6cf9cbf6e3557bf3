"""The hub itself is not asked: what would be sent to it is looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file

from circuits.cli import main
from circuits.gate.card import GateCard
from circuits.models.hub import push_to_hub
from circuits.models.names import find_folder


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    folder = find_folder("sparse")
    assert folder is not None
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    calls: list[tuple[str, Any]] = []

    def create_repo(_self: HfApi, repository: str, **options: Any) -> str:
        calls.append((repository, options))
        return f"https://hub/{repository}"

    def upload_folder(_self: HfApi, **options: Any) -> None:
        files = {path.name for path in Path(options["folder_path"]).iterdir()}
        calls.append((options["repo_id"], files))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return calls


def test_the_whole_folder_is_sent_with_a_card(sparse, sent, capsys):
    assert main(["push", str(sparse), "someone/sparse-model", "--private"]) == 0
    assert "uploaded to https://hub/someone/sparse-model" in capsys.readouterr().out
    assert sent[0] == ("someone/sparse-model", {"private": True, "exist_ok": True})
    repository, files = sent[1]
    assert repository == "someone/sparse-model"
    assert {"config.json", "gate.json", "model.safetensors", "tokenizer.json"} <= files
    card = (sparse / "README.md").read_text()
    assert 'load_model("someone/sparse-model")' in card
    assert "| attention edges open | 0.578 % at 128 tokens |" in card
    assert "| cross-entropy, nats per token | 1.2226 |" in card
    assert "(kept)" in card


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the embedded dense model that updates nothing."""
    folder = tmp_path / "adapter"
    names = [f"transformer.h.{layer}.attn.c_proj" for layer in range(4)]
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": torch.zeros(shape)
        for name in names
        for part, shape in (("A", (1, 128)), ("B", (128, 1)))
    }
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "dense"}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    GateCard(bias=0.5).save(folder)
    return folder


def test_an_adapter_is_sent_as_one(adapter, sent):
    push_to_hub(adapter, "someone/twin")
    assert sent[1][1] == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "gate.json",
    }  # fmt: skip
    card = (adapter / "README.md").read_text()
    assert "library_name: peft" in card
    assert "low-rank updates of `dense`" in card
    assert "plus 0.5 is above zero" in card


def test_an_adapter_of_a_folder_is_not_sent(adapter, sent):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(find_folder("dense"))}))
    with pytest.raises(ValueError, match="which others do not have; write the name"):
        push_to_hub(adapter, "someone/twin")
    assert not sent


def test_a_card_of_ones_own_stays(sparse, sent):
    (sparse / "README.md").write_text("mine")
    push_to_hub(sparse, "someone/model")
    assert "README.md" in sent[1][1]
    assert (sparse / "README.md").read_text() == "mine"


@pytest.mark.parametrize("repository", ["model", "/model", "a/b/c", ""])
def test_a_name_without_an_owner_is_refused(sparse, sent, repository):
    with pytest.raises(ValueError, match="give owner/name"):
        push_to_hub(sparse, repository)
    assert not sent


def test_a_folder_without_a_model_is_refused(tmp_path, sent):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder|no config.json"):
            push_to_hub(folder, "someone/model")
    assert not sent


def test_a_refusal_of_the_hub_says_what_to_do(sparse, sent, monkeypatch):
    def refuse(_self: HfApi, *_args: Any, **_options: Any) -> None:
        response: Any = httpx.Response(401, request=httpx.Request("POST", "https://hub"))
        raise HfHubHTTPError("401 Unauthorized", response=response)

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert not sent
    with pytest.raises(PermissionError, match="hub refused someone/model: 401.*hf auth login"):
        push_to_hub(sparse, "someone/model")
