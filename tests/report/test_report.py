import base64
import gzip
import json
import os
import re
from dataclasses import replace

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from circuits.figures import sizes_figure
from circuits.report import (
    check_writable,
    figures_of,
    headlines,
    latex_tables,
    methods_text,
    warnings_of,
    write_results,
)
from circuits.results.circuit import Circuit
from circuits.results.comparison_file import load_comparison
from circuits.results.discovery import Discovery
from tests.fake_comparison import EDGES, make_comparison, make_found, make_study, pruned
from tests.traces import traces

TABLES = [
    *("evidence.csv", "models.csv", "others.csv", "overlap.csv"),
    *("roles.csv", "seeds.csv", "stability.csv", "structure.csv", "summary.csv", "transfer.csv"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of results, written once; tests only read it."""
    out = tmp_path_factory.mktemp("parent") / "results"
    write_results(make_comparison(), out)
    return out


def with_redrawn(comparison, side, redrawn):
    """The comparison of edges in one task, one model's redrawn sizes replaced."""
    discovery = comparison.discoveries["ioi"][side]
    found = {"edge": replace(discovery.circuits["edge"], redrawn_sizes=redrawn)}
    sides = comparison.discoveries["ioi"] | {side: replace(discovery, circuits=found)}
    return replace(comparison, discoveries={"ioi": sides})


def one_task():
    return make_comparison(tasks=("ioi",), granularities=("edge",))


def test_everything_is_written(written):
    assert sorted(path.name for path in written.iterdir()) == sorted(
        [*TABLES, "circuits", "comparison.json", "figures", "report.html"]
    )
    assert sorted(path.name for path in (written / "circuits").iterdir()) == sorted(
        f"{task}.{side}.{granularity}.json"
        for task in ("ioi", "greater_than")
        for side in ("dense", "sparse")
        for granularity in ("head", "mlp", "edge", "attention_edge")
    )
    assert sorted(path.name for path in (written / "figures").iterdir()) == sorted(
        ["density.html", "density_per_head.html", "sizes.html", "plotly.min.js"]
        + [
            f"{task}.{kind}.html"
            for task in ("ioi", "greater_than")
            for kind in ("arcs", "attention", "circuits", "faithfulness", "strongest")
        ]
    )
    assert [path.name for path in written.parent.iterdir()] == ["results"]


def test_tables_have_the_promised_columns(written):
    summary = pd.read_csv(written / "summary.csv")
    assert list(summary.columns) == list(make_comparison().summary_table().columns)
    assert len(summary) == 8
    models = pd.read_csv(written / "models.csv")
    assert list(models.columns) == [
        "model", "task", "metric", "accuracy", "ce", "density", "context", "tokenizer",
    ]  # fmt: skip
    assert list(models["model"]) == ["dense", "sparse"] * 2
    edge = summary[(summary["task"] == "ioi") & (summary["granularity"] == "edge")].iloc[0]
    assert (edge["dense"], edge["sparse"], edge["ratio"]) == (6, 3, 2)


def test_circuits_and_the_comparison_can_be_read_back(written):
    circuit = Circuit.load(written / "circuits" / "ioi.sparse.edge.json")
    assert sorted(circuit.edge_names) == sorted(EDGES["sparse"])
    again = load_comparison(written / "comparison.json")
    assert again.summary_table().equals(make_comparison().summary_table())


def test_the_report_needs_no_network_and_holds_plotly_once(written):
    page = (written / "report.html").read_text()
    assert len(page.encode()) < 8e6
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="(https?:|//)', page)
    outside_plotly, _, packed = page.partition('<script type="application/gzip" id="plotly">')
    assert 'id="evidence-data"' in outside_plotly
    assert "<script src" not in outside_plotly
    assert "cdn." not in outside_plotly
    plotly = gzip.decompress(base64.b64decode(packed.partition("</script>")[0])).decode()
    assert plotly == get_plotlyjs()
    assert "plotly.js v" not in page


def test_the_report_answers_first_then_explores_then_proves(written):
    page = (written / "report.html").read_text()
    body = page[page.index("<body>") :]
    places = [
        body.index(text)
        for text in (
            "The circuits of a dense model and of its sparse twin",
            "90 % of the behaviour takes 6 edges in the dense model and 3 in the sparse one",
            "is the head whose attention changed most",
            'id="explorer"',
            "<h2>Evidence</h2>",
            "<h2>How this was made</h2>",
        )
    ]
    assert places == sorted(places)


def test_no_table_and_no_figure_stands_twice(written):
    page = (written / "report.html").read_text()
    captions = re.findall(r"<figcaption>(.*?)[<&]", page)
    figures = re.findall(r'data-figure="(.*?)"', page)
    assert len(captions) > 5
    assert len(set(captions)) == len(captions)
    assert sorted(figures) == [
        *("density", "density_per_head", "greater_than.faithfulness", "ioi.faithfulness", "sizes"),
    ]


def test_single_figures_read_plotly_from_their_folder(written):
    page = (written / "figures" / "sizes.html").read_text()
    assert 'src="plotly.min.js"' in page
    assert "https://cdn" not in page
    assert len(page) < 1e6


def test_whatever_comes_from_data_is_escaped(written):
    pages = [written / "report.html", *(written / "figures").glob("*.html")]
    for path in pages:
        page = path.read_text()
        assert "<script>alert" not in page
        assert "<b>bold" not in page
        assert "<i>Mary" not in page
    report = (written / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report  # the prompt
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in report  # the command
    assert "dense &amp; &lt;b&gt;bold&lt;/b&gt;" in report
    assert "&lt;i&gt;Mary&lt;/i&gt;" in report


def test_a_hostile_task_name_stays_inside_the_folder(tmp_path):
    comparison = make_comparison(tasks=("../<img src=x>",), granularities=("edge",))
    write_results(comparison, tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert (tmp_path / "results" / "circuits" / "..__img_src_x_.dense.edge.json").is_file()
    assert "<img" not in (tmp_path / "results" / "report.html").read_text().split("</head>")[1]


@pytest.mark.parametrize("granularity", ["head", "mlp", "attention_edge"])
def test_one_granularity_makes_a_whole_report(tmp_path, granularity):
    comparison = make_comparison(tasks=("ioi",), granularities=(granularity,))
    write_results(comparison, tmp_path / "results")
    page = (tmp_path / "results" / "report.html").read_text()
    assert "no circuit of this kind was looked for" in page
    assert (tmp_path / "results" / "figures" / "ioi.circuits.html").is_file()


def test_a_headline_gives_sizes_ratio_and_interval():
    (sentence,) = headlines(one_task())
    assert sentence == (
        "ioi: 90 % of the behaviour takes 6 edges in the dense model and 3 in the sparse one "
        "(ratio 2.0, 95 % interval 1.1 to 3.6)."
    )


def test_the_headline_on_edges_comes_first_within_its_task():
    sentences = headlines(make_comparison())
    assert [sentence.split(":")[0] for sentence in sentences] == ["ioi"] * 4 + ["greater_than"] * 4
    assert "edges" in sentences[0]
    assert "heads" in sentences[1]


def test_a_headline_says_when_the_interval_includes_1():
    (sentence,) = headlines(with_redrawn(one_task(), "sparse", (2.0, 5.0, 7.0, 9.0)))
    assert sentence.endswith("; no clear difference: the interval includes 1.")


def with_evidence(comparison, **changes):
    """The comparison of edges in one task, with changed evidence for both models."""
    sides = {
        side: replace(discovery, circuits={"edge": replace(discovery.circuits["edge"], **changes)})
        for side, discovery in comparison.discoveries["ioi"].items()
    }
    return replace(comparison, discoveries={"ioi": sides})


def test_a_headline_says_why_there_is_no_interval():
    none = {"redrawn_sizes": (), "interval": "none: 6 prompts are too few"}
    (sentence,) = headlines(with_evidence(one_task(), **none))
    assert "(ratio 2.0, no interval: 6 prompts are too few); no clear difference" in sentence


def test_a_headline_of_pruned_circuits_tells_the_sizes_before():
    (sentence,) = headlines(pruned(one_task(), lambda size: size // 2))
    assert "takes 3 edges in the dense model and 1 in the sparse one (ratio 3.0, 95 % " in sentence
    assert sentence.endswith("; before pruning 6 and 3.")


def test_a_circuit_that_misses_the_target_on_fresh_prompts_is_named():
    assert not [one for one in warnings_of(one_task()) if "recovers" in one]
    missed = {"faithfulness": 0.85, "faithfulness_low": 0.8, "faithfulness_high": 0.89}
    named = [one for one in warnings_of(with_evidence(one_task(), **missed)) if "recovers" in one]
    assert named[0] == (
        "The dense model's circuit of ioi (edges) was sized at 0.940 of the behaviour, but "
        "recovers 0.850 [0.800, 0.890] on 20 fresh prompts."
    )
    assert len(named) == 2


def test_a_circuit_that_no_fresh_prompt_can_show_is_named():
    (dense, _) = [
        one
        for one in warnings_of(with_evidence(one_task(), measured_on="sizing", n_measured=7))
        if "recovers" in one
    ]
    assert dense.endswith(
        "0.920 [0.850, 0.970] on the 7 prompts that it was found on: no fresh prompt shares "
        "their templates."
    )


def test_a_headline_says_when_the_sparse_model_needs_more():
    comparison = one_task()
    sides = comparison.discoveries["ioi"]
    swapped = {"dense": sides["sparse"], "sparse": sides["dense"]}
    (sentence,) = headlines(replace(comparison, discoveries={"ioi": swapped}))
    assert "ratio 0.50, 95 % interval 0.28 to 0.89" in sentence
    assert sentence.endswith("; the sparse model needs more.")


def test_a_headline_on_empty_circuits_claims_nothing():
    comparison = make_comparison(tasks=("ioi",), granularities=("mlp",))
    discovery = comparison.discoveries["ioi"]["sparse"]
    empty = make_found(discovery.circuits["mlp"].circuit, (0.0, 0.0, 0.0, 0.0))
    both = replace(discovery, circuits={"mlp": empty})
    (sentence,) = headlines(
        replace(comparison, discoveries={"ioi": {"dense": both, "sparse": both}})
    )
    assert sentence.endswith("; no clear difference.")
    assert "nan" not in sentence


def test_equally_good_models_get_no_warning():
    assert warnings_of(make_comparison()) == []


def test_a_worse_cross_entropy_is_warned_of():
    comparison = make_comparison()
    worse = replace(comparison.models["sparse"], ce=1.2101)
    (warning,) = warnings_of(replace(comparison, models=comparison.models | {"sparse": worse}))
    assert "0.0101 nats above the dense model's" in warning


def test_an_unknown_cross_entropy_is_warned_of():
    comparison = make_comparison()
    unknown = replace(comparison.models["dense"], ce=None)
    (warning,) = warnings_of(replace(comparison, models=comparison.models | {"dense": unknown}))
    assert "not measured" in warning


def test_quantised_weights_are_told_of():
    comparison = make_comparison()
    quantised = replace(comparison.models["dense"], quantization="GGUF, Q4_1 100%")
    (told,) = warnings_of(replace(comparison, models=comparison.models | {"dense": quantised}))
    assert "Weights that were quantised (dense: GGUF, Q4_1 100%) are not those" in told


def test_a_low_accuracy_is_warned_of():
    comparison = one_task()
    sides = comparison.discoveries["ioi"]
    low = sides | {"sparse": replace(sides["sparse"], accuracy=0.9)}
    (warning,) = warnings_of(replace(comparison, discoveries={"ioi": low}))
    assert "The sparse model answers 90 % of the ioi prompts" in warning


def test_a_new_an_empty_and_an_own_folder_are_accepted(written, tmp_path):
    check_writable(tmp_path / "new")
    check_writable(tmp_path)
    check_writable(written)
    assert not (tmp_path / "new").exists()


def test_a_file_is_refused(tmp_path):
    (tmp_path / "results").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; give a folder"):
        check_writable(tmp_path / "results")


def test_a_missing_parent_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing to write results"):
        check_writable(tmp_path / "missing" / "results")


@pytest.mark.parametrize(
    "names",
    [["thesis.tex"], ["summary.csv"], ["comparison.json", "thesis.tex"]],
    ids=["foreign", "half-written", "ours with a foreign file"],
)
def test_a_folder_that_holds_other_files_is_refused_and_kept(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files.*give a new or empty folder"):
        write_results(one_task(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    # The tests may run as root, for whom nothing is forbidden.
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(PermissionError, match="no permission to write into"):
        check_writable(tmp_path / "results")


def test_own_results_are_replaced_whole(tmp_path):
    out = tmp_path / "results"
    write_results(make_comparison(), out)
    write_results(one_task(), out)
    assert len(list((out / "circuits").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("step", ["report_html", "save_comparison"])
@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_behind_when_writing_fails_half_way(tmp_path, monkeypatch, step, failure):
    def fail(*_arguments):
        raise failure

    monkeypatch.setattr(f"circuits.report.write.{step}", fail)
    with pytest.raises(type(failure)):
        write_results(one_task(), tmp_path / "results")
    assert not list(tmp_path.iterdir())


def test_old_results_return_when_the_last_rename_fails(tmp_path, monkeypatch):
    out = tmp_path / "results"
    write_results(one_task(), out)
    before = json.loads((out / "comparison.json").read_text())
    rename = os.rename

    def fail_on_new(source, target):
        if str(source).endswith("new"):
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_new)
    with pytest.raises(OSError, match="no space left"):
        write_results(make_comparison(), out)
    assert json.loads((out / "comparison.json").read_text()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.fixture(scope="module")
def written_of_one(tmp_path_factory):
    """Results of one model, written once; tests only read them."""
    out = tmp_path_factory.mktemp("parent") / "results"
    write_results(make_study(tasks=("ioi",)), out)
    return out


def test_one_model_has_the_tables_and_figures_that_compare_nothing(written_of_one):
    assert sorted(path.name for path in written_of_one.iterdir()) == [
        *("circuits", "comparison.json", "evidence.csv", "figures", "models.csv"),
        *("report.html", "roles.csv", "stability.csv", "structure.csv"),
    ]
    assert sorted(path.name for path in (written_of_one / "figures").iterdir()) == [
        *("ioi.arcs.html", "ioi.attention.html", "ioi.circuits.html", "ioi.faithfulness.html"),
        "ioi.strongest.html",
        *("plotly.min.js", "sizes.html"),
    ]
    assert sorted(path.name for path in (written_of_one / "circuits").iterdir()) == sorted(
        f"ioi.model.{granularity}.json" for granularity in ("head", "mlp", "edge", "attention_edge")
    )
    evidence = pd.read_csv(written_of_one / "evidence.csv").set_index("granularity")
    assert list(evidence["model"]) == ["model"] * 4
    assert evidence.loc["edge", "size"] == 6
    assert "twin" not in pd.read_csv(written_of_one / "roles.csv")


def test_the_report_of_one_model_speaks_of_one(written_of_one):
    page = (written_of_one / "report.html").read_text()
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    assert "<h1>The circuits of a model</h1>" in body
    assert (
        "90 % of the behaviour takes 6 edges [5, 8] of 40, which recover 0.920 [0.850, 0.970] on "
        "20 fresh prompts." in body
    )
    assert "looks at the answer (0.70) and raises its logit by 2.5" in body
    assert "is the head with the greatest absolute score in the circuit of ioi" in body
    evidence = page[page.index('<section id="evidence">') : page.index('<section id="method">')]
    for words in ("twin", "both models", "dense / sparse", "other model", "sparse one", "seeds"):
        assert words not in body + evidence, words
    assert "<script>alert" not in page
    assert "dense &amp; &lt;b&gt;bold&lt;/b&gt;" in page


def test_a_discovery_is_read_from_the_folder_of_one_model(written_of_one, written):
    study = make_study(tasks=("ioi",))
    assert Discovery.load(written_of_one) == study.discoveries["ioi"]["model"]
    assert load_comparison(written_of_one).roles == study.roles
    with pytest.raises(ValueError, match="results holds 4 discoveries; choose one of"):
        Discovery.load(written)
    with pytest.raises(ValueError, match=r"holds no comparison.json; make one with"):
        Discovery.load(written / "circuits")


def test_a_gated_model_alone_shows_its_density_too():
    sparse = replace(make_study().models["model"], density=0.1)
    names = dict(figures_of(replace(make_study(), models={"model": sparse})))
    assert {"density", "density_per_head"} <= set(names)


def test_a_behaviour_that_one_model_does_not_do_says_why():
    study = replace(make_study(tasks=("ioi",)), refused={"pronoun": {"model": "too small a gap"}})
    assert headlines(study)[-1] == "pronoun: no circuit. too small a gap"


def test_a_methods_paragraph_is_of_two_models():
    with pytest.raises(ValueError, match="these are results of one model"):
        methods_text(make_study())


def test_big_sizes_have_no_exponent_anywhere(tmp_path):
    comparison = one_task()
    sides = comparison.discoveries["ioi"]
    big = {
        side: replace(
            one,
            circuits={
                "edge": replace(
                    one.circuits["edge"],
                    size=22_730.4,
                    size_low=18_779.0,
                    size_high=31_000.5,
                    n_components=123_211,
                    n_attribution=13_048.5,
                )
            },
        )
        for side, one in sides.items()
    }
    comparison = replace(comparison, discoveries={"ioi": big})
    write_results(comparison, tmp_path / "results")
    page = (tmp_path / "results" / "report.html").read_text()
    opening = page[page.index("<body>") : page.index('id="explorer"')]
    assert "22,730" in opening
    texts = [
        re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL),
        " ".join(str(bar.text) + str(bar.customdata) for bar in traces(sizes_figure(comparison))),
        *headlines(comparison),
        repr(big["dense"]),
        latex_tables(comparison)["sizes"],
    ]
    assert not [found for text in texts for found in re.findall(r"\d(?:\.\d+)?e\+0\d", text)]
