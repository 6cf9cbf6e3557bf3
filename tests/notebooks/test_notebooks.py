"""Every notebook runs from top to bottom."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import HAS_HOOKED_TRANSFORMER

# A reader gets better numbers with more; that every cell runs is seen with these as well.
AT_MOST = {"n_prompts": 8, "steps": 20}
# The size doubles from trial to trial in place of a step of a tenth, and fewer circuits are
# measured next to the one found, on less text: a quarter of the forward runs. What is found is a
# circuit all the same; how circuits are found is tested with the search as it is.
COARSE = {
    "circuits.discovery.search.EVERY_UP_TO": 1,
    "circuits.discovery.search.N_CURVE": 4,
    "circuits.discovery.evidence.N_RANDOM": 1,
    "circuits.comparison.transfer.N_RANDOM": 1,
    "circuits.comparison.gather.N_SEQUENCES": 8,
}
SEARCH_COARSELY = f"""
import importlib

for place, value in {COARSE}.items():
    module, _, name = place.rpartition(".")
    setattr(importlib.import_module(module), name, value)
"""
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def shortened(source):
    """The same code with fewer prompts and steps."""
    return re.sub(
        rf"\b({'|'.join(AT_MOST)})=(\d+)",
        lambda found: f"{found[1]}={min(int(found[2]), AT_MOST[found[1]])}",
        source,
    )


def test_long_settings_alone_are_shortened():
    given = "DiscoverConfig(n_prompts=16, seed=16); TrainConfig(steps=160, warm_steps=90); steps=2"
    assert shortened(given) == given.replace("ts=16,", "ts=8,").replace("160", "20")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(scope="module")
def client() -> Iterator[NotebookClient]:
    """One kernel for all notebooks: each would import everything anew, for ten seconds and more."""
    folder = NOTEBOOKS[0].parent
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=900, resources={"metadata": {"path": str(folder)}}
    )
    with client.setup_kernel():
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(client, path):
    if path.stem == "from_attribution_to_circuit" and not HAS_HOOKED_TRANSFORMER:
        pytest.skip("its hand-built model needs HookedTransformer")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = shortened(cell.source)
    # No name that another notebook has defined is there.
    first = [nbformat.v4.new_code_cell(source) for source in (SEARCH_COARSELY, "%reset -f")]
    notebook.cells[:0] = first
    client.nb = notebook
    client.execute(cleanup_kc=False)
    tables = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert tables, "no cell showed a result"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
