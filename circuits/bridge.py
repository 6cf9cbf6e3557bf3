"""Models as TransformerBridge, the class that TransformerLens keeps.

HookedTransformer is removed in TransformerLens 4. A TransformerBridge wraps the Hugging Face model
and offers the same hook names, so gates, ablation, gradient attribution, discovery and comparison
take either; tests hold the two to the same numbers. What needs single components to be run by
themselves (local and exact patching), post-training and saving want a HookedTransformer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from circuits.gate import add_gate
from circuits.gate_card import GATE_FILE, GateCard
from circuits.hooked import quiet_transformers
from circuits.models import find_folder


def load_bridge(
    name_or_path: str | Path, *, device: str | torch.device = "cpu"
) -> TransformerBridge:
    """Returns a model as a TransformerBridge in evaluation mode, gated if it is a sparse one.

    `name_or_path` is read as by `circuits.load_model`, but for checkpoints of HookedTransformer's
    own (`final.pth`), which have no Hugging Face model to wrap.

    Raises:
        ValueError: an unknown name, or a folder without Hugging Face weights.
        FileNotFoundError: no such folder.
    """
    folder = find_folder(name_or_path)
    if folder is not None and not any(folder.glob("*.safetensors*")):
        raise ValueError(
            f"{name_or_path} holds no model.safetensors; a TransformerBridge wraps a Hugging Face "
            "model, use circuits.load_model for other checkpoints"
        )
    with quiet_transformers():
        model = TransformerBridge.boot_transformers(
            str(name_or_path if folder is None else folder), device=str(device)
        )
    if folder is not None and (folder / GATE_FILE).is_file():
        add_gate(model, GateCard.load(folder).bias)
    return model.eval()
