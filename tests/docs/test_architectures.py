"""The table of architectures in the docs is that of its file, and names what there is."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("commands_hook", ROOT / "docs" / "commands_hook.py")
assert _SPEC is not None
assert _SPEC.loader is not None
hook = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hook)


def test_the_page_shows_what_the_file_says():
    page = hook.on_page_markdown((ROOT / "docs" / "models.md").read_text())
    with (ROOT / "docs" / "architectures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["architecture"] for row in rows}) == len(rows) > 100
    lines = page.splitlines()
    for row in rows:
        name = row["architecture"]
        if row["runs"] == "yes":
            (line,) = [one for one in lines if one.startswith(f"| {name} |")]
            cells = [cell.strip() for cell in line.split("|")[2:-2]]
            assert [cell == "yes" for cell in cells] == [
                row[check] == "yes" for check in hook.CHECKS[1:]
            ]
        else:
            assert any(name in one and row["runs"].replace("|", "\\|") in one for one in lines)
        assert all(row[check] for check in hook.CHECKS[: 1 if row["runs"] != "yes" else None])


def test_the_file_names_architectures_that_there_are():
    with (ROOT / "docs" / "architectures.csv").open() as file:
        rows = list(csv.DictReader(file))
    newest = max(row["transformer_lens"] for row in rows)
    known = {row["architecture"] for row in rows if row["transformer_lens"] == newest}
    # An older TransformerLens lists fewer.
    assert len(known & set(SUPPORTED_ARCHITECTURES)) > 0.9 * len(SUPPORTED_ARCHITECTURES)
