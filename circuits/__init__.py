"""Sparse attention post-training, and the circuits of dense and sparse models side by side.

The public names are imported when they are first used, so that `circuits --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.attribute import Scores, attribution_patching, integrated_gradients
    from circuits.circuit import Circuit
    from circuits.compare_models import compare
    from circuits.comparison import Comparison, load_comparison, save_comparison
    from circuits.discovery import DiscoverConfig, Discovery
    from circuits.find_circuits import discover
    from circuits.gate import add_gate, is_gated, remove_gate
    from circuits.graph import Graph
    from circuits.models import load_bridge, load_model
    from circuits.open_edges import measure_density
    from circuits.report import write_results
    from circuits.saving import save_model
    from circuits.sparsify.config import TrainConfig
    from circuits.sparsify.train import post_train
    from circuits.tasks import PromptPair, Task, get_task, register_task, task_from_file

_HOME = {
    "Circuit": "circuit",
    "Comparison": "comparison",
    "DiscoverConfig": "discovery",
    "Discovery": "discovery",
    "Graph": "graph",
    "PromptPair": "tasks",
    "Scores": "attribute",
    "Task": "tasks",
    "TrainConfig": "sparsify.config",
    "add_gate": "gate",
    "attribution_patching": "attribute",
    "compare": "compare_models",
    "discover": "find_circuits",
    "get_task": "tasks",
    "integrated_gradients": "attribute",
    "is_gated": "gate",
    "load_bridge": "models",
    "load_comparison": "comparison",
    "load_model": "models",
    "measure_density": "open_edges",
    "post_train": "sparsify.train",
    "register_task": "tasks",
    "remove_gate": "gate",
    "save_comparison": "comparison",
    "save_model": "saving",
    "task_from_file": "tasks",
    "write_results": "report",
}

__all__ = [
    "Circuit",
    "Comparison",
    "DiscoverConfig",
    "Discovery",
    "Graph",
    "PromptPair",
    "Scores",
    "Task",
    "TrainConfig",
    "add_gate",
    "attribution_patching",
    "compare",
    "discover",
    "get_task",
    "integrated_gradients",
    "is_gated",
    "load_bridge",
    "load_comparison",
    "load_model",
    "measure_density",
    "post_train",
    "register_task",
    "remove_gate",
    "save_comparison",
    "save_model",
    "task_from_file",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits' has no attribute {name!r}")
    return getattr(importlib.import_module(f"circuits.{_HOME[name]}"), name)
