"""Putting a model on the Hugging Face hub, with a card that says what it is and how good."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from circuits.files import write_text
from circuits.gate.card import GateCard
from circuits.models.info import ModelInfo, model_info
from circuits.numbers import percent

CARD_FILE = "README.md"
METHOD = "https://arxiv.org/abs/2512.05865"


def push_to_hub(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Uploads a model's folder as it is, and returns where it stands.

    A folder without a `README.md` is given one (`model_card`). `load_model(repository)` then loads
    the model wherever there is a network.

    Args:
        folder: What `save_model`, `save_adapter` or `circuits train` wrote.
        repository: `owner/name`; made if there is none.
        private: Whether a new repository is private.

    Raises:
        ValueError: the name is not `owner/name`, the model's files are damaged, or it is an adapter
            of a model that lies on this machine only.
        FileNotFoundError: there is no such folder, or it holds no model.
        PermissionError: not logged in to the hub, or not allowed to write there.
    """
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f"{repository!r} is not a repository; give owner/name")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    info = model_info(folder)
    if Path(info.base).is_absolute():
        raise ValueError(
            f"{folder} is an adapter of {info.base}, which others do not have; write the name that "
            "this model has on the hub into adapter_config.json (base_model_name_or_path), or push "
            "the merged model (circuits train --save merged)"
        )
    card = folder / CARD_FILE
    if not card.exists():
        write_text(card, model_card(info, repository))
    hub = HfApi()
    try:
        url = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload model")
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise PermissionError(
            f"the hub refused {repository}: {str(error).splitlines()[0]}; log in with `hf auth "
            "login`, and give a repository that you may write to"
        ) from error
    return str(url)


def model_card(info: ModelInfo, repository: str) -> str:
    """Returns a model card in Markdown: what the model is, how it was made, how to load it."""
    lines = [
        "---",
        f"library_name: {'peft' if info.base else 'transformer_lens'}",
        f"tags: [mechanistic-interpretability{', sparse-attention' if info.gate else ''}]",
        "---",
        f"# {repository.partition('/')[2]}",
        "",
        f"{info.architecture}, {info.n_layers} layers of {info.n_heads} heads, d_model "
        f"{info.d_model}, {info.n_parameters:,} weights.",
        "",
        *(_base_lines(info.base) if info.base else ()),
        *(_gate_lines(info.gate) if info.gate else ()),
        "```python",
        "from circuits import load_model  # pip install sparse-circuits",
        "",
        f'model = load_model("{repository}")  # a TransformerLens HookedTransformer',
        "```",
        "",
    ]
    return "\n".join(lines)


def _base_lines(base: str) -> list[str]:
    return [
        f"These are low-rank updates of `{base}`, a PEFT adapter: they are added to its weights. "
        "`base.json` has a digest of the weights that they were made for.",
        "",
    ]


def _gate_lines(gate: GateCard) -> list[str]:
    said = (
        "Its attention is sparse: an edge from a query to a key is open only where their score "
        f"plus {gate.bias:g} is above zero ([method]({METHOD})). Other libraries load the weights "
        "but do not know of the gate, and compute something else."
    )
    rows = ["| | |", "|---|---|"]
    if gate.density:
        share, context = gate.density["overall"], gate.density["context"]
        rows.append(f"| attention edges open | {percent(share)} at {context} tokens |")
    if gate.ce is not None and gate.dense_ce is not None:
        rows.append(f"| cross-entropy, nats per token | {gate.ce:.4f} |")
        rows.append(f"| of the dense model | {gate.dense_ce:.4f} |")
    kept = "kept" if gate.satisfied else "not kept"
    if gate.kl is not None and gate.epsilon is not None:
        rows.append(f"| KL(dense to sparse), nats per token | {gate.kl:.4f} |")
        rows.append(f"| bound on that divergence | {gate.epsilon:g} ({kept}) |")
    if gate.tau is not None:
        rows.append(f"| bound on the cross-entropy | {gate.tau:.4f} ({kept}) |")
    config = gate.training.get("config", {})
    for name in ("steps", "batch_size", "seed"):
        if name in config:
            rows.append(f"| {name.replace('_', ' ')} | {config[name]} |")
    return [said, "", *rows, ""]
