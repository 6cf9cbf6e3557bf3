"""The page of a run: what it says, that its numbers are the log's, and that nothing breaks out."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from circuits.cli import main
from circuits.settings import settings_of
from circuits.sparsify import run as run_module
from circuits.sparsify import run_files
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.train import TrainingInterrupted, post_train
from circuits.sparsify.training_page import training_html, write_training_page
from circuits.sparsify.training_page.charts import Point, linear_ticks, log_ticks, thinned
from tests.helpers import CountingStream, make_taught_model
from tests.sparsify.run_folders import N_LAYERS, TAU, make_run_folder, result_of

HOSTILE = "</script><script>alert(1)</script>\"><img src=x onerror=alert(2)> {{ 7 * 7 }} &amp;'"


class Page(HTMLParser):
    """The text of a page in order, the tags that it opens, and what stands in its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open and "script" not in self._open and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def data_of(html: str) -> dict[str, Any]:
    return json.loads(re.findall(r'id="chart-data">(.*?)</script>', html)[0])


def finished(path: Path, *, changes: dict[str, Any] | None = None, **options: Any) -> Any:
    log = make_run_folder(path, **options)
    make_run_folder(path, result=result_of(log, **(changes or {})), **options)
    return log


# gap: how far CE (KL) is below its bound at the last step, which 40 steps take to 1 - 40/40 = 0.
@pytest.mark.parametrize(
    ("done", "options", "said"),
    [
        (40, {}, "The bound is kept: cross-entropy 1.2580 nats, 0.0020 below tau = 1.2600, with "
                 "0.591 % of attention edges open (T = 64) at step 40 of 40."),
        (40, {"bound": "kl"}, "The bound is kept: KL(dense || sparse) 0.0180 nats, 0.0020 below "
                              "epsilon = 0.02, with 0.591 % of"),
        (40, {"gap": -0.00001, "changes": {"satisfied": False}},
         "The bound is not kept: cross-entropy 1.2600 nats, 1e-05 above tau = 1.2600, with"),
        (40, {"gate": False}, "A control, trained without a gate: after 40 steps, its "
                              "cross-entropy is 1.2100 nats, 0.0400 below the dense model's"),
    ],
    ids=["kept", "kept by KL", "not kept", "a control"],
)  # fmt: skip
def test_a_sentence_says_what_a_run_came_to(tmp_path, done, options, said):
    finished(tmp_path, done=done, **options)
    html = training_html(tmp_path)
    assert said in Page(html).text
    control = options.get("gate") is False
    assert ("lambda, log axis" in html) is not control
    assert ("Where edges are open" in html) is not control


@pytest.mark.parametrize(
    ("done", "options", "said"),
    [
        (3, {}, "So far, at step 3 of 40, the bound was not looked at; that comes every 5 steps."),
        (22, {}, "So far, at step 22 of 40, no state has kept the bound; the last has "
                 "cross-entropy 1.3830 nats, 0.1230 above tau = 1.2600, with 4.86 % of attention "
                 "edges open (T = 64) at step 20."),
        (39, {}, "So far, at step 39 of 40, the sparsest state that keeps the bound has "
                 "cross-entropy 1.2585 nats, 0.0015 below tau = 1.2600, with 1 % of"),
        (7, {"gate": False}, "so far, at step 7 of 40, its cross-entropy is 1.2450 nats"),
        (0, {}, "So far, at step 0 of 40, the bound was not looked at"),
    ],
    ids=["before an evaluation", "not kept yet", "kept", "a control", "before a step"],
)  # fmt: skip
def test_a_run_that_did_not_end_says_how_far_it_is(tmp_path, done, options, said):
    stopped = {"step": done, "why": "SIGTERM; the state is saved"}
    make_run_folder(tmp_path, done=done, stopped=stopped, **options)
    page = Page(training_html(tmp_path))
    assert said in page.text
    charts = [one for tag, one in page.tags if tag == "figure" and one.get("class") == "chart"]
    assert len(charts) == (0 if done == 0 else 2 if options else 4)
    told = f"Not finished. Stopped after step {done} of 40: SIGTERM; the state is saved"
    assert page.text.index(told) < page.text.index(said)
    assert f"circuits train --config {tmp_path}/recipe.toml --device cpu --out {tmp_path} --resume" in page.text  # fmt: skip  # noqa: E501
    assert "circuits compare" not in page.text


def test_failures_and_warnings_come_before_the_verdict(tmp_path):
    spoken = {"failures": ["no edges <are> open"], "warnings": ["the text is new"]}
    finished(tmp_path, changes=spoken)
    text = Page(training_html(tmp_path)).text
    places = [text.index(one) for one in (
        "Not a success. no edges <are> open", "Warning. the text is new", "The bound is kept",
    )]  # fmt: skip
    assert places == sorted(places)
    assert f"circuits compare --dense dense --sparse {tmp_path}/model --out results" in text


def test_the_numbers_of_the_page_are_those_of_the_log(tmp_path):
    log = finished(tmp_path)
    html = training_html(tmp_path)
    drawn = {
        (number, series["name"]): [tuple(point) for point in series["points"]]
        for number, chart in enumerate(data_of(html)["charts"])
        for series in chart["series"]
    }
    expected = {
        (0, "control set"): "control_ce",
        (0, "selection set"): "ce",
        (1, "sampled gates, expected"): "expected_density",
        (1, "selection set"): "density",
        (2, "lambda"): "lambda",
        (3, "tokens a second"): "tokens_per_second",
    }
    assert drawn == {
        place: [(line["step"], line[name]) for line in log if name in line]
        for place, name in expected.items()
    }
    table = re.findall(r'<table id="evaluations">(.*?)</table>', html, re.S)[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", table, re.S)]
    measured = [line for line in log if "ce" in line]
    assert [row[:4] for row in rows[1:]] == [
        [f"{one['step']}", f"{one['ce']:.4f}", f"{one['tau']:.4f}", f"{100 * one['density']:.4f}%"]
        for one in measured
    ]
    assert '<tr class="chosen"><td>40</td>' in table
    best = measured[-1]["density_per_layer"]
    shares = re.findall(r">layer \d</span>.*?width:([\d.]+)%.*?>([\d.]+) %</span>", html)
    assert [float(text) for _, text in shares] == [float(f"{100 * share:.3g}") for share in best]
    assert [float(width) for width, _ in shares] == pytest.approx([100 / 3, 200 / 3, 100], abs=0.01)
    heads = re.findall(r'<td title="a2.h(\d): (.*?)" style="--shade:(.*?)%">(.*?)</td>', html)
    # 60 for all, 15 less for each factor of ten.
    assert heads == [
        ("0", "50 %", "55.5", "50"),
        ("1", "0.5 %", "25.5", "0.5"),
        ("2", "0 %", "0.0", "0"),
        ("3", "100 %", "60.0", "100"),
    ]
    assert len(shares) == N_LAYERS
    assert len(html) < 60_000


@pytest.mark.parametrize(
    "options", [{}, {"bound": "kl"}, {"gate": False}], ids=["CE", "KL", "control"]
)
def test_curves_lie_where_their_axes_say(tmp_path, options):
    """Places are read back by two labels of each axis, as a person with a ruler would."""
    finished(tmp_path, **options)
    html = training_html(tmp_path)
    figures = re.findall(r'<figure class="chart".*?</figure>', html, re.S)
    assert len(figures) == (2 if "gate" in options else 4)
    for figure, chart in zip(figures, data_of(html)["charts"], strict=True):
        is_log = "log axis" in figure
        ticks = [
            (
                float(at),
                float(text.replace(",", "").removesuffix(" %")) / (100 if "%" in text else 1),
            )
            for at, text in re.findall(r'y tick" style="bottom:([-\d.]+)%">(.*?)</span>', figure)
        ]
        assert 2 <= len(ticks) <= 7
        assert all(0 <= at <= 100 for at, _ in ticks)
        (at0, v0), (at1, v1) = ticks[0], ticks[-1]
        lines = re.findall(r'<g class="([\w ]+)"><path d="M(.*?)"', figure)
        curves = [path for look, path in lines if "bound" not in look]
        for series, path in zip(chart["series"], curves, strict=True):
            places = [tuple(map(float, one.split())) for one in path.split("L")]
            for (x, y), (step, value) in zip(places, series["points"], strict=True):
                share = ((1000 - y) / 10 - at0) / (at1 - at0)
                read = v0 * (v1 / v0) ** share if is_log else v0 + share * (v1 - v0)
                assert x == pytest.approx(1000 * step / 40, rel=1e-3)
                if y > -2000:
                    assert read == pytest.approx(value, rel=0.01)
        level = next((path for look, path in lines if look == "selection bound"), None)
        if chart["kind"] == "nats":
            assert level is not None
            height = (1000 - float(level.split()[-1])) / 10
            share = (height - at0) / (at1 - at0)
            read = v0 * (v1 / v0) ** share if is_log else v0 + share * (v1 - v0)
            bound = {"bound": 0.02, "gate": 1.25}.get(next(iter(options), ""), TAU)
            assert read == pytest.approx(bound, rel=0.01)


def test_hostile_names_stay_text(tmp_path):
    finished(
        tmp_path, model=HOSTILE, data={"name": HOSTILE},
        changes={"failures": [HOSTILE], "warnings": [HOSTILE]},
    )  # fmt: skip
    html = training_html(tmp_path)
    page = Page(html)
    assert page.text.count(HOSTILE) >= 5  # title, heading, two alerts, recipe, facts
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in write_training_page(tmp_path).with_name("summary.txt").read_text()


def test_the_recipe_stands_by_the_themes_of_help(tmp_path):
    make_run_folder(tmp_path, edge_weight=3.0)
    html = training_html(tmp_path)
    recipe = html[html.index("<h2>The recipe") : html.index("<h2>How it was made")]
    themes = list(dict.fromkeys(one.theme for one in settings_of(TrainConfig).values()))
    assert re.findall("<h3>(.*?)</h3>", recipe) == ["Model, data and result", *themes]
    names = re.findall('<th scope="row">(.*?)</th>', recipe)
    assert names == ["model", "context", *settings_of(TrainConfig)]
    assert '>edge_weight</th><td>3 <span class="note">(8)</span>' in recipe
    assert ">beta2</th><td>0.999</td>" in recipe


def test_a_run_from_python_has_no_command(tmp_path):
    make_run_folder(tmp_path, model=None)
    text = Page(training_html(tmp_path)).text
    assert text.startswith("Sparse post-training of a model")
    assert "--out" not in text


def test_a_last_line_cut_short_and_values_that_are_no_numbers_are_left_out(tmp_path):
    log = make_run_folder(tmp_path, done=10)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(
            '{"step": 11, "sampled_ce": NaN, "lambda": 3.0, "tokens_per_second": 5.0}\n{"ste'
        )
    lambdas = data_of(training_html(tmp_path))["charts"][2]["series"][0]["points"]
    assert lambdas == [[line["step"], line["lambda"]] for line in log] + [[11, 3.0]]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run of `circuits train`: it has no run"):
        training_html(tmp_path)
    (tmp_path / "run.json").write_text('{"config": 3}')
    with pytest.raises(ValueError, match="run.json is not that of a run"):
        training_html(tmp_path)


def test_a_thinned_series_keeps_its_ends_and_every_spike():
    points: list[Point] = [(step, math.sin(step / 90)) for step in range(5000)]
    points[1234] = (1234, 9.0)
    points[4321] = (4321, -9.0)
    kept = thinned(points, n_bins=100)
    assert len(kept) <= 200
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    assert {points[1234], points[4321]} <= set(kept)
    for number in range(100):  # each bin keeps its range
        part = points[50 * number : 50 * number + 50]
        values = [y for x, y in kept if part[0][0] <= x <= part[-1][0]]
        assert (min(values), max(values)) == (min(p[1] for p in part), max(p[1] for p in part))
    assert thinned(points[:200], n_bins=100) == points[:200]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 160), (1.2316, 1.2416), (-3, 1e6), (1e-9, 3e-9), (0, 1), (7, 7.0001)]
)
def test_ticks_of_a_linear_axis_are_few_round_and_inside(low, high):
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 * abs(low) <= one <= high * (1 + 1e-9) for one in ticks)
    assert float(f"{ticks[1] - ticks[0]:.1e}") == pytest.approx(ticks[1] - ticks[0], rel=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.018, 0.45, [0.02, 0.05, 0.1, 0.2]),
        (1e-4, 1.0, [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (0.11, 0.19, [0.12, 0.14, 0.16, 0.18]),
    ],
)
def test_ticks_of_a_log_axis_are_few_and_round(low, high, expected):
    assert log_ticks(low, high) == pytest.approx(expected)


def test_show_opens_a_run_and_makes_the_page_of_one_that_has_none(tmp_path, monkeypatch, capsys):
    make_run_folder(tmp_path / "run")
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    assert main(["show", str(tmp_path / "run")]) == 0
    page = tmp_path / "run" / "training.html"
    assert opened == [page.as_uri()]
    assert page.read_text() == training_html(tmp_path / "run")
    assert "opened" in capsys.readouterr().out


def test_show_opens_the_page_of_each_seed_in_their_order(tmp_path, monkeypatch, capsys):
    folders = [tmp_path / "runs" / name for name in ("seed2", "seed10")]
    for folder in folders:
        make_run_folder(folder)
    (tmp_path / "runs" / "seedling").mkdir()
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    assert main(["show", str(tmp_path / "runs")]) == 0
    assert opened == [(folder / "training.html").as_uri() for folder in folders]
    assert main(["show", "--no-browser", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("open this in a browser") == 2


def train(out: Path, **options: Any) -> Any:
    resume = options.pop("resume", False)
    config = TrainConfig(
        **{"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "control_every": 2, "slack": 10.0,
           "control_sequences": 4, "evaluate_every": 4, "selection_sequences": 8,
           "checkpoint_every": 3, **options}
    )  # fmt: skip
    dense = make_taught_model(CountingStream())
    return post_train(
        dense, CountingStream(), config, out, frozen=(), resume=resume, progress=False
    )


def test_an_interrupted_run_has_its_page_and_going_on_writes_it_anew(tmp_path, monkeypatch):
    real = run_module.Run.train_step

    def interrupted(self: Any) -> dict[str, Any]:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(run_module.Run, "train_step", interrupted)
        train(tmp_path / "run")
    before = Page((tmp_path / "run" / "training.html").read_text()).text
    assert "Not finished. Stopped after step 5 of 12: SIGINT; the state is saved" in before
    assert "So far, at step 5 of 12, the sparsest state that keeps the bound has" in before
    result = train(tmp_path / "run", resume=True)
    after = Page((tmp_path / "run" / "training.html").read_text()).text
    assert "Not finished" not in after
    assert f"The bound is kept: cross-entropy {result.ce:.4f} nats" in after
    assert f"open (T = {result.density.context}) at step {result.best_step} of 12." in after
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "stopped" not in written
    assert written["result"]["density_per_head"] == result.density.per_head.tolist()
    assert written["start"]["dense_ce"] == result.dense_ce
    assert (tmp_path / "run" / "summary.txt").read_text().splitlines()[2] in after
    assert not list((tmp_path / "run").glob(".training*"))


def test_a_run_that_fails_has_its_page(tmp_path):
    with pytest.raises(FloatingPointError):
        train(tmp_path / "run", learning_rate=1e30)
    text = Page((tmp_path / "run" / "training.html").read_text()).text
    assert re.search(
        r"Stopped after step \d+ of 12: the (loss|gradient norm|CE|control CE) is", text
    )


def test_a_bound_that_is_never_kept_is_said_on_the_page(tmp_path):
    result = train(tmp_path / "run", slack=0.0, tau=1e-6)
    assert not result.satisfied
    text = Page((tmp_path / "run" / "training.html").read_text()).text
    assert "Not a success. no state kept the bound CE <= 0.0000" in text
    assert f"The bound is not kept: cross-entropy {result.ce:.4f} nats" in text


def test_a_run_that_goes_on_for_long_shows_itself_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "SHOWN_EVERY", 0.0)
    seen = []
    real = run_module.Run.train_step

    def watched(self: Any) -> dict[str, Any]:
        page = tmp_path / "run" / "training.html"
        seen.append(Page(page.read_text()).text if page.exists() else "")
        return real(self)

    monkeypatch.setattr(run_module.Run, "train_step", watched)
    train(tmp_path / "run")
    assert seen[2] == ""
    assert "So far, at step 3 of 12, the bound was not looked at" in seen[3]
    assert "So far, at step 9 of 12, the sparsest state that keeps" in seen[9]
