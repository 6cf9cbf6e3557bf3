"""Results are read and drawn without loading a model's library.

`lint-imports` holds the walls between the folders of the package; these tests hold what a fresh
process has loaded in the end, through whatever other library.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from circuits.results.comparison_file import save_comparison
from tests.fake_comparison import make_comparison

pytestmark = pytest.mark.slow

MODEL_LIBRARIES = {"transformer_lens", "transformers", "accelerate", "datasets"}


def libraries_after(code, *arguments):
    """The top-level names of all modules that a fresh process has loaded after running the code."""
    end = (
        "\nimport json, sys\nprint(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + end, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_comparison(make_comparison(tasks=["ioi"]), folder / "comparison.json")
    return folder


@pytest.mark.parametrize(
    "code",
    [
        "import circuits",
        "import circuits.choices, circuits.sparsify.config",
    ],
    ids=["the package", "choices and recipe"],
)
def test_torch_is_not_loaded(code):
    assert not libraries_after(code) & (MODEL_LIBRARIES | {"torch", "pandas", "plotly"})


def test_values_drawings_and_a_saved_comparison_load_no_model(saved, tmp_path):
    """All in one process, as each loads PyTorch: what none of them loads is not there at its end.

    All of `circuits figures` is run but the browser that would print them.
    """
    code = """
import contextlib, importlib, pathlib, pkgutil, sys
import circuits, circuits.figures, circuits.report, circuits.results
for package in (circuits.results, circuits.figures, circuits.report):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    for name in package.__all__:
        getattr(package, name)
saved, again, figures = map(pathlib.Path, sys.argv[1:])
circuits.write_results(circuits.load_comparison(saved / "comparison.json"), again)
import circuits.figures.export as export
export.one_browser = contextlib.nullcontext
export.save_figure = lambda figure, path, column: pathlib.Path(path).write_text(figure.to_json())
from circuits.cli import main
assert main(["figures", str(saved), "--out", str(figures), "--format", "svg"]) == 0
"""
    loaded = libraries_after(code, saved, tmp_path / "again", tmp_path / "figures")
    assert "torch" in loaded  # a circuit holds its scores as tensors
    assert not loaded & MODEL_LIBRARIES
    assert (tmp_path / "again" / "report.html").is_file()
    assert len(list((tmp_path / "figures").iterdir())) == 8
