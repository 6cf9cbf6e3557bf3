"""The page of figures shows each that there is."""

from pathlib import Path

from circuits.report import figures_of
from tests.fake_comparison import make_comparison

DOCS = Path(__file__).parents[2] / "docs"


def test_each_figure_is_on_the_page_with_its_command_and_its_drawing():
    page = (DOCS / "figures.md").read_text()
    names = [name for name, _ in figures_of(make_comparison(tasks=("greater_than",)))]
    assert len(names) == 8
    drawings = set()
    for name in names:
        kind = name.removeprefix("greater_than.")
        assert f"\n    circuits figures results --only {name}" in page
        assert f"](images/figures/{kind}.svg)" in page
        drawings.add(f"{kind}.svg")
    there = list((DOCS / "images" / "figures").iterdir())
    assert {path.name for path in there} == drawings
    assert sum(path.stat().st_size for path in there) < 1.5e6
