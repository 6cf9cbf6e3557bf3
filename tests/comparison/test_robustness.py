import copy
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from circuits.comparison.robustness import COLUMNS, n_steps, robustness, verdicts
from circuits.discovery.find_circuits import discover
from circuits.figures import robustness_figure
from circuits.models.backend import Model
from circuits.models.load import load_model
from circuits.results.discovery import DiscoverConfig
from circuits.results.pair import size_ratio
from circuits.tasks import Task, get_task
from tests.traces import layout, traces

pytestmark = pytest.mark.slow


Pair = tuple[Model, Model]


@pytest.fixture(scope="module")
def pair(small_pair) -> Pair:
    return load_model(small_pair.dense), load_model(small_pair.sparse)


@pytest.fixture(scope="module")
def table(pair: Pair):
    told = []
    found = robustness(
        *pair,
        [get_task("pronoun")],
        granularities=("head",),
        methods=("attribution_patching", "gradient_average"),
        ablations=("corrupted", "zero"),
        metrics=("logit_diff", "kl_div"),
        targets=(0.7, 0.9),
        n_prompts=10,
        prompt_counts=(10, 12),
        redraws=2,
        on_step=told.append,
    )
    choices = ("a", "b"), ("absolute", "signed"), ("follow", "clean"), ("c", "d"), ("e", "f")
    assert len(told) == n_steps(1, *choices, (12,)) == 14
    return found


def test_choices_are_varied_one_at_a_time(table):
    assert tuple(table.columns) == COLUMNS
    names = ("method", "selection", "gates", "ablation", "metric", "prompts")
    columns = [table[name] for name in names]
    assert list(dict.fromkeys(zip(*columns, strict=True))) == [
        ("attribution_patching", "absolute", "follow", "corrupted", "logit_diff", 10),
        ("gradient_average", "absolute", "follow", "corrupted", "logit_diff", 10),
        ("attribution_patching", "signed", "follow", "corrupted", "logit_diff", 10),
        ("attribution_patching", "absolute", "clean", "corrupted", "logit_diff", 10),
        ("attribution_patching", "absolute", "follow", "zero", "logit_diff", 10),
        ("attribution_patching", "absolute", "follow", "corrupted", "kl_div", 10),
        ("attribution_patching", "absolute", "follow", "corrupted", "logit_diff", 12),
    ]
    assert len(table) == 7 * 2


def test_gates_make_no_difference_to_a_model_without_them(table):
    sizes = table[(table["target"] == 0.9)].set_index("gates")
    base = table[(table["target"] == 0.9)].iloc[0]
    assert sizes.loc["clean", "dense"] == base["dense"]


def test_sizes_are_those_that_discovery_finds(pair: Pair, table):
    for _, row in table[table["target"] == 0.9].iloc[::2].iterrows():  # others take too long
        config = DiscoverConfig(
            target=row["target"],
            granularities=("head",),
            method=row["method"],
            selection=row["selection"],
            gates=row["gates"],
            ablation=row["ablation"],
            n_prompts=row["prompts"],
            redraws=2,
        )
        task = replace(get_task("pronoun"), metric=row["metric"])
        both = [discover(model, task, config).circuits["head"] for model in pair]
        assert [one.size for one in both] == row[["dense", "sparse"]].tolist()
        told = row[["ratio", "ratio_low", "ratio_high"]].tolist()
        assert told == pytest.approx(size_ratio(*both), nan_ok=True)


def test_a_model_against_itself_has_ratio_1_everywhere(pair: Pair):
    table = robustness(
        pair[1],
        pair[1],
        [get_task("pronoun")],
        granularities=("head",),
        methods=("attribution_patching",),
        selections=("absolute",),
        gates=("follow",),
        ablations=("corrupted",),
        metrics=(),
        targets=(0.5, 0.9),
        n_prompts=12,
        prompt_counts=(),
        redraws=2,
    )
    assert set(table[["ratio", "ratio_low", "ratio_high"]].to_numpy().flat) == {1}
    (sentence,) = verdicts(table)
    assert "clearly fewer in 0, clearly more in 0; ratio 1 to 1" in sentence


def test_a_task_that_a_model_cannot_do_is_noted_and_has_no_size(pair: Pair):
    pronoun = get_task("pronoun")

    def backwards(tokenizer, n, seed):
        return [
            replace(pair, answers=pair.wrong_answers, wrong_answers=pair.answers)
            for pair in pronoun.pairs(tokenizer, n, seed)
        ]

    task = Task("backwards", "the giver for an answer", "logit_diff", backwards)
    table = robustness(
        *pair,
        [task],
        methods=("attribution_patching",),
        selections=("absolute",),
        gates=("follow",),
        ablations=("corrupted",),
        metrics=(),
        targets=(0.9,),
        n_prompts=6,
        prompt_counts=(),
        redraws=2,
    )
    assert all(table["ratio"].isna())
    assert table["note"].str.contains("dense model: the model does not do the task").all()
    assert "of 0 settings (1 without a size)" in verdicts(table)[0]


QUICK = {
    "granularities": ("head",),
    "methods": ("attribution_patching",),
    "selections": ("absolute",),
    "gates": ("follow",),
    "ablations": ("corrupted",),
    "metrics": (),
    "targets": (0.9,),
    "n_prompts": 6,
    "prompt_counts": (),
}


def test_a_model_with_nan_in_it_is_an_error_and_not_a_note(pair: Pair):
    broken = copy.deepcopy(pair[1], {id(pair[1].tokenizer): pair[1].tokenizer})
    with torch.no_grad():
        broken.blocks[1].attn.W_O[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="sparse model, task pronoun: logit_diff of the .* is nan"):
        robustness(pair[0], broken, [get_task("pronoun")], **QUICK)


def test_too_few_prompts_are_noted():
    ioi = get_task("ioi")  # Its ten templates share six prompts: some have one alone.

    def few(tokenizer, n, seed):
        return ioi.pairs(tokenizer, min(n, 40), seed)

    table = robustness(
        load_model("dense"), load_model("sparse"), [Task("few", "a short file", "logit_diff", few)],
        **QUICK | {"prompt_counts": (100,), "ablations": ("corrupted", "mean")},
    )  # fmt: skip
    notes = table.set_index(["ablation", "prompts"])["note"].to_dict()
    assert notes["corrupted", 6] == ""
    assert "dense model: task 'few' gave 40 pairs" in notes["corrupted", 100]
    assert "dense model: mean ablation needs at least 2 prompts" in notes["mean", 6]


def made_up(**columns):
    row = {
        "task": "ioi",
        "granularity": "edge",
        "method": "attribution_patching",
        "selection": "absolute",
        "gates": "follow",
        "ablation": "corrupted",
        "metric": "logit_diff",
        "target": 0.9,
        "prompts": 10,
        "dense": 20.0,
        "sparse": 10.0,
        "ratio": 2.0,
        "ratio_low": 1.5,
        "ratio_high": 3.0,
        "note": "",
    }
    return row | columns


def test_verdicts_count_what_is_clear():
    table = pd.DataFrame(
        [
            made_up(),
            made_up(target=0.95, ratio=1.2, ratio_low=0.9, ratio_high=1.4),
            made_up(target=0.99, ratio=0.5, ratio_low=0.4, ratio_high=0.8),
            made_up(method="other", ratio=math.nan, ratio_low=math.nan, ratio_high=math.nan),
        ]
    )
    assert verdicts(table) == [
        "ioi, edge: of 3 settings (1 without a size) the sparse model needs clearly fewer in 1, "
        "clearly more in 1; ratio 0.5 to 2"
    ]


def test_the_figure_has_a_line_for_each_setting_in_each_panel(table):
    figure = robustness_figure(table)
    assert [trace.name for trace in traces(figure)] == [
        "attribution patching, absolute, gates follow, corrupted, 10 prompts",
        "method gradient average",
        "selection signed",
        "gates clean",
        "ablation zero",
        "metric kl div",
        "12 prompts",
    ]
    hostile = robustness_figure(pd.DataFrame([made_up(task="<b>task</b>")]))
    assert "&lt;b&gt;" in layout(hostile).annotations[0].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularities": ("attention_edge",)}, "no robustness table"),
        ({"metrics": ("loss",)}, "unknown metric 'loss'; choose among logit_diff"),
        ({"methods": ("magic",)}, "unknown method 'magic'"),
        ({"selections": ("luck",)}, "unknown selection 'luck'"),
        ({"gates": ("open",)}, "unknown gates 'open'"),
        ({"ablations": ("noise",)}, "unknown ablation 'noise'"),
        ({"targets": (2.0,)}, "above 0 and at most 1"),
    ],
)
def test_unknown_choices_are_refused(pair: Pair, options, message):
    with pytest.raises(ValueError, match=message):
        robustness(*pair, [get_task("pronoun")], **options)
