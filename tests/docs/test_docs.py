"""The site builds without a warning, and knows every command and module."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from circuits.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_option_of_every_command_is_there(site, capsys):
    page = html.unescape((site / "command_line" / "index.html").read_text())
    for command in (
        "compare",
        "discover",
        "figures",
        "methods",
        "mib",
        "models get",
        "models show",
        "push",
        "robustness",
        "show",
        "tasks",
        "text",
        "train",
        "why",
    ):
        assert main([*command.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        options = set(re.findall(r"--[a-z][a-z0-9-]+", shown)) - {"--help"}
        assert f"circuits {command}" in page
        assert {one for one in options if f"<code>{one}</code>" not in page} == set()


def test_every_public_name_is_there(site):
    import circuits

    page = (site / "python" / "index.html").read_text()
    names = [getattr(circuits, name) for name in vars(circuits)["__all__"]]
    missing = [one for one in names if f'id="{one.__module__}.{one.__name__}"' not in page]
    assert missing == []


def test_the_site_asks_no_other_host(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", path.read_text()
        )
        assert loaded == [], path
