"""`circuits discover` into a file or a folder, and `circuits show`."""

import pytest

from circuits.cli import main
from circuits.results.comparison_file import load_comparison
from circuits.results.discovery import Discovery
from circuits.tasks.task import _REGISTRY
from tests.comparison.test_parts import TASK, make_models


@pytest.mark.slow
def test_the_command_writes_a_file_or_a_folder_and_show_opens_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("circuits.models.load.load_model", lambda *_, **__: make_models()[0])
    monkeypatch.setitem(_REGISTRY, TASK.name, TASK)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))

    def run(*arguments):
        code = main(list(arguments))
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    options = ["--task", TASK.name, "--prompts", "4", "--granularity", "mlp"]
    code, said = run("discover", *options, "--out", str(tmp_path / "x.json"))
    assert code == 0, said
    single = Discovery.load(tmp_path / "x.json")
    code, shown = run("show", str(tmp_path / "x.json"))
    assert code == 0
    assert "Components that recover 90 %" in shown
    assert shown.partition("size:")[0] in said
    code, said = run("discover", *options, "--out", str(tmp_path / "results"))
    assert code == 0, said
    assert "report.html" in said
    assert Discovery.load(tmp_path / "results") == single
    assert load_comparison(tmp_path / "results").run["command"].startswith("circuits ")
    code, said = run("show", str(tmp_path / "results"))
    assert code == 0
    assert opened == [(tmp_path / "results" / "report.html").as_uri()]
    code, said = run("show", "--no-browser", str(tmp_path / "results" / "report.html"))
    assert code == 0
    assert "open this in a browser: file://" in said
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["show", "{}/none"], "there is no file or folder"),
        (["show", "{}"], "holds none of report.html, training.html, robustness.html; give"),
        (
            ["discover", "--task", "ioi", "--task", "pronoun", "--out", "{}/x.json"],
            "a file for one",
        ),
        (["discover", "--out", "{}/none/results"], "there is no folder"),
    ],
    ids=["nothing there", "no page", "two tasks in a file", "no parent"],
)
def test_bad_paths_are_refused(tmp_path, capsys, arguments, why):
    assert main([one.format(tmp_path) for one in arguments]) == 2
    assert why in " ".join(capsys.readouterr().err.split())
