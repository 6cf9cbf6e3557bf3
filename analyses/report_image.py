"""The picture of the report on the page that says how to read it.

    circuits compare --task greater_than --out results
    python analyses/report_image.py results docs/images/report.png

Needs the extra `dev` (Playwright) and a Chromium that is installed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

CHOSEN = {"task": "greater_than", "by": "edge", "prompt": 0}
WIDTH, HEIGHT = 1440, 830


def main() -> None:
    """Opens a report, chooses the head whose attention changed most, and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="folder that `circuits compare` wrote")
    parser.add_argument("out", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    page_address = (arguments.results / "report.html").resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{page_address}#{urlencode(CHOSEN)}")
        page.select_option("#node", page.inner_text(".picture figcaption b"))
        page.evaluate("document.activeElement.blur()")
        page.locator("#explorer").evaluate("one => one.scrollIntoView()")
        page.screenshot(path=arguments.out)
        browser.close()


if __name__ == "__main__":
    main()
