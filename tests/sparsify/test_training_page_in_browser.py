"""The page of a run in a real browser: whole at any width, read by pointer and by keyboard."""

from __future__ import annotations

import pytest

from circuits.sparsify.training_page import write_training_page
from tests.browser import in_browser, opened
from tests.sparsify.run_folders import make_run_folder, result_of

pytestmark = in_browser
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>" + "long" * 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The address of a page with hostile names, and the log that it is of."""
    folder = tmp_path_factory.mktemp("run")
    options = {"model": HOSTILE, "data": {"name": HOSTILE}}
    log = make_run_folder(folder, **options)
    warned = result_of(log, failures=[HOSTILE], warnings=["a warning"])
    make_run_folder(folder, result=warned, **options)
    return write_training_page(folder).as_uri(), log


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_asks_for_nothing(browser, run, scheme):
    address, _ = run
    page, said, asked = opened(
        browser, address, viewport={"width": 1440, "height": 900}, color_scheme=scheme
    )
    for width in (1440, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(
            "[...document.querySelectorAll('.plot')].every(p => p.clientWidth > 250)"
        )
    is_dark = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(one => one < 60)"
    )
    assert is_dark == (scheme == "dark")
    strokes = page.evaluate(
        "[...document.querySelectorAll('.plot path')].map(p => getComputedStyle(p).stroke)"
    )
    assert "none" not in strokes
    assert page.locator("img").count() == 0
    assert (said, asked) == ([], [address])
    page.close()


def test_pointing_and_arrow_keys_read_the_numbers_of_the_log(browser, run):
    address, log = run
    page, said, _ = opened(browser, address, viewport={"width": 1440, "height": 900})
    plot = page.locator(".plot").first
    box = plot.bounding_box()
    # The middle of 40 steps, where lambda and an evaluation were logged.
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    read = page.locator(".readout").all_text_contents()
    line = log[19]
    assert read[0] == (
        f"control set, step 20: {line['control_ce']:.4f} · selection set, step 20: {line['ce']:.4f}"
    )
    assert read[2] == f"lambda: {float(format(line['lambda'], '.3g')):g}"
    assert read[3] == "tokens a second: 1,020"
    page.mouse.move(0, 0)
    assert page.locator(".readout").first.text_content().strip() == ""
    page.locator(".chart").nth(1).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    line = log[14]
    percent = float(format(100 * line["density"], ".3g"))
    read = page.locator(".readout").nth(1).text_content()
    assert read.endswith(f"selection set, step 15: {percent:g} %")
    page.locator("summary").click()
    assert page.locator("#evaluations tbody tr").count() == 8
    assert said == []
    page.close()
