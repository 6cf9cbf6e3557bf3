"""The methods paragraph says what was done, and nothing that is not in the results."""

from dataclasses import replace

import pytest

from circuits.cli import main
from circuits.report import as_latex, bibtex, cited, latex_tables, methods_text
from circuits.report.methods import REFERENCES
from circuits.results.comparison_file import save_comparison
from tests.fake_comparison import make_comparison


def changed(comparison, **config):
    """The comparison, as if it had been made with other settings."""
    return replace(
        comparison,
        discoveries={
            task: {
                side: replace(found, config=replace(found.config, **config))
                for side, found in sides.items()
            }
            for task, sides in comparison.discoveries.items()
        },
    )


def test_the_text_tells_models_prompts_settings_and_versions():
    text = methods_text(make_comparison())
    for said in (
        "cross-entropy 1.205 nats per token on held-out text, 0.6 % of its attention edges open at "
        "128 tokens",
        "three sets of 100 pairs",
        "(seed 0)",
        "ioi [@wang2023], measured by logit_diff: dense 4 (ablated -1, top answer right on 99 %)",
        "scored by attribution patching [@syed2023]",
        "the greatest absolute score first",
        "replaced by what it writes in the corrupted run",
        "stays at 0.9 or above",
        "3 random circuits of its size, measured on the same 20 fresh prompts",
        "torch 2.13.0",
    ):
        assert said in text, said
    assert "Gates" not in text
    assert "seeds are" not in text


def test_other_settings_are_told():
    text = methods_text(
        changed(
            make_comparison(),
            method="integrated_gradients",
            method_options={"steps": 7},
            selection="signed",
            ablation="zero",
            gates="clean",
            target=0.8,
            n_prompts=33,
        )
    )
    for said in (
        "integrated gradients over a path of the input [@hanna2024] (steps = 7)",
        "what supports the behaviour most first",
        "replaced by nothing at all",
        "Gates: each is held at its value",
        "stays at 0.8 or above",
        "three sets of 33 pairs",
    ):
        assert said in text, said


def test_what_is_not_known_is_not_told():
    comparison = make_comparison()
    dense = replace(comparison.models["dense"], ce=None)
    text = methods_text(replace(comparison, models=comparison.models | {"dense": dense}, run={}))
    assert "None" not in text and " nan" not in text
    assert "Versions" not in text
    assert text.count("cross-entropy") == 1


def test_every_citation_has_its_reference():
    comparison = make_comparison()
    keys = cited(comparison)
    assert keys == ["draye2025", "syed2023", "wang2023", "hanna2023", "shao1989", "nanda2022"]
    text = bibtex(keys)
    assert text.count("@") == len(keys)
    assert text.count("{") == text.count("}")
    for key in keys:
        assert f"{{{key}," in text
    assert set(REFERENCES) >= set(keys)


def test_latex_escapes_what_it_would_take_for_its_own():
    text = as_latex("99 % of greater_than & {x} [@syed2023] a\\b")
    assert text == r"99 \% of greater\_than \& \{x\} \cite{syed2023} a\textbackslash{}b"


def test_the_tables_hold_the_numbers_of_the_summary():
    tables = latex_tables(make_comparison())
    sizes = tables["sizes"]
    assert sizes.count(r"\toprule") == sizes.count(r"\bottomrule") == 1
    assert r"greater\_than & edges & 6 & 3 & 2.00 [" in sizes
    assert "0.92 [0.85, 0.97]" in sizes
    assert len([line for line in sizes.splitlines() if line.endswith(r"\\")]) == 1 + 2 * 4
    assert r"sparse & ioi & 4.000 & 99 \% & 1.205 & 0.6 \% \\" in tables["models"]


def test_the_command_prints_or_writes(tmp_path, capsys):
    save_comparison(make_comparison(), tmp_path / "comparison.json")
    assert main(["methods", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "[@syed2023]" in shown and "@article{syed2023," in shown
    assert main(["methods", str(tmp_path), "--out", str(tmp_path / "paper")]) == 0
    written = {path.name for path in (tmp_path / "paper").iterdir()}
    assert written == {"methods.md", "methods.tex", "references.bib", "sizes.tex", "models.tex"}
    assert r"\cite{syed2023}" in (tmp_path / "paper" / "methods.tex").read_text()


def test_a_folder_without_a_comparison_is_refused(tmp_path, capsys):
    assert main(["methods", str(tmp_path)]) == 2
    assert "make one with `circuits compare`" in capsys.readouterr().err


def test_a_comparison_of_nothing_has_no_methods():
    with pytest.raises(ValueError, match="no behaviour was compared"):
        methods_text(replace(make_comparison(), discoveries={}))
