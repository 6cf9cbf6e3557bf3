"""A comparison as one JSON file, and back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from circuits.files import write_json
from circuits.results.comparison import AttentionExample, Comparison, ModelFacts
from circuits.results.discovery import FORMAT, RESULTS_FILE, Discovery, check_format
from circuits.results.packed import pack_lists, unpack_lists
from circuits.results.roles import HeadRole
from circuits.results.transfer import Transfer


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the whole comparison as one JSON file, so that figures can be made later."""
    content = {
        "format": FORMAT,
        "models": {side: asdict(facts) for side, facts in comparison.models.items()},
        "discoveries": {
            task: {side: discovery.to_json() for side, discovery in found.items()}
            for task, found in comparison.discoveries.items()
        },
        "examples": {
            task: [_packed(example) for example in examples]
            for task, examples in comparison.examples.items()
        },
        "transfers": [asdict(transfer) for transfer in comparison.transfers],
        "roles": [asdict(role) for role in comparison.roles],
        "twins": comparison.twins,
        "refused": comparison.refused,
        "run": comparison.run,
    }
    write_json(path, content)


def _packed(example: AttentionExample) -> dict[str, Any]:
    patterns = {side: pack_lists(layers) for side, layers in example.patterns.items()}
    return {f.name: getattr(example, f.name) for f in fields(example)} | {"patterns": patterns}


def _example(content: dict[str, Any]) -> AttentionExample:
    patterns = {side: unpack_lists(layers) for side, layers in content["patterns"].items()}
    tokens = {key: tuple(content[key]) for key in ("clean", "corrupted")}
    values: dict[str, Any] = content | tokens | {"patterns": patterns}
    return AttentionExample(**values)


def _facts(content: dict[str, Any]) -> ModelFacts:
    per_head = tuple(tuple(heads) for heads in content["density_per_head"])
    per_layer = tuple(content["density_per_layer"])
    return ModelFacts(**content | {"density_per_layer": per_layer, "density_per_head": per_head})


def load_comparison(path: str | Path) -> Comparison:
    """Returns the comparison that `save_comparison` wrote.

    Args:
        path: The file, or a folder that `circuits compare` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none, or of another version of the package.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no comparison at {path}; make one with `circuits compare`")
    try:
        content = json.loads(path.read_text())
        check_format(content, path, "discoveries", "circuits compare")
        models = {side: _facts(facts) for side, facts in content["models"].items()}
        examples = {
            task: tuple(map(_example, several)) for task, several in content["examples"].items()
        }
        discoveries = {
            task: {side: Discovery.from_json(discovery) for side, discovery in found.items()}
            for task, found in content["discoveries"].items()
        }
        transfers = tuple(Transfer(**transfer) for transfer in content["transfers"])
        roles = tuple(HeadRole(**role) for role in content["roles"])
        twins = tuple(content["twins"])
        refused, run = content["refused"], content["run"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a saved comparison ({type(error).__name__}: {error}); "
            "make one with `circuits compare`"
        ) from error
    return Comparison(models, discoveries, examples, transfers, roles, twins, refused, run)
