"""A real browser for the tests of pages: what a page says, and what it asks the network for."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no browser: install chromium to test the pages in it"
    ),
]
"""The marks of tests that open a page."""


def opened(browser: Any, path: str, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page, what it wrote to the console, and what it asked the network for."""
    page = browser.new_page(**options)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path)
    return page, said, asked
