"""The report of a comparison becomes part of the site where one is given."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).parents[2] / "docs" / "commands_hook.py"


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("commands_hook", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_report_that_is_given_is_copied_and_linked(hook, tmp_path, monkeypatch):
    results, site = tmp_path / "results", tmp_path / "site"
    results.mkdir()
    site.mkdir()
    (results / "report.html").write_text("the report")
    monkeypatch.setenv("CIRCUITS_RESULTS", str(results))
    page = hook.on_page_markdown((PATH.parent / "index.md").read_text())
    hook.on_post_build(config=SimpleNamespace(site_dir=str(site)))
    (copied,) = site.iterdir()
    assert copied.read_text() == "the report"
    assert f'<a href="{copied.name}">' in page


def test_without_one_the_site_is_built_without_a_link(hook, tmp_path, monkeypatch):
    monkeypatch.delenv("CIRCUITS_RESULTS", raising=False)
    page = hook.on_page_markdown((PATH.parent / "index.md").read_text())
    hook.on_post_build(config=SimpleNamespace(site_dir=str(tmp_path)))
    assert "report -->" not in page and "<a href" not in page
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_report_is_refused(hook, tmp_path, monkeypatch):
    monkeypatch.setenv("CIRCUITS_RESULTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="report.html; run circuits compare first"):
        hook.on_page_markdown("text <!-- report -->")
