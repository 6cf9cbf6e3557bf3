"""What a model is said to do is what it says on each prompt, run alone."""

from __future__ import annotations

import pytest
import torch

from circuits.cli import main
from circuits.discovery import behaviours as module
from circuits.discovery.behaviours import behaviours, behaviours_table
from circuits.intervene.experiment import prepare_experiment
from circuits.models import load_model
from circuits.tasks import Task, get_task


@pytest.fixture(scope="module")
def model():
    return load_model("dense")


@torch.no_grad()
def chances(model, text):
    tokenizer = model.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    return model(torch.tensor([ids]))[0, -1].softmax(dim=-1)


@pytest.mark.parametrize("name", ["pronoun", "greater_than"])
def test_the_shares_are_those_of_prompts_run_alone(model, name):
    task = get_task(name)
    (found,) = behaviours(model, [task], n_prompts=8)
    pairs = task.pairs(model.tokenizer, 8, 0)
    beats = top = 0
    margins = []
    for pair in pairs:
        right, wrong = (
            [model.tokenizer.convert_tokens_to_ids(text.strip()) for text in texts]
            for texts in (pair.answers, pair.wrong_answers)
        )
        clean, corrupted = chances(model, pair.clean), chances(model, pair.corrupted)
        beats += sum(clean[i] for i in right) > sum(clean[i] for i in wrong)
        top += int(clean.argmax()) in right
        scores = [
            sum(run[i] for i in right) - sum(run[i] for i in wrong)
            if task.metric == "prob_diff"
            else run[right[0]].log() - run[wrong[0]].log()
            for run in (clean, corrupted)
        ]
        margins.append(float(scores[0] - scores[1]))
    assert found.n_prompts == 8
    assert found.right_beats_wrong == pytest.approx(beats / 8)
    assert found.top == pytest.approx(top / 8)
    margins = torch.tensor(margins)
    assert found.margin == pytest.approx(margins.mean().item(), abs=1e-3)
    assert found.margin_error == pytest.approx(margins.std().item() / 8**0.5, abs=1e-3)
    assert found.does


def test_a_behaviour_that_is_not_there_says_why(model):
    def exchanged(tokenizer, n, seed):
        return [
            type(pair)(pair.clean, pair.corrupted, pair.wrong_answers, pair.answers, pair.template)
            for pair in get_task("ioi").pairs(tokenizer, n, seed)
        ]

    tasks = [Task("exchanged", "", "logit_diff", exchanged), get_task("brackets")]
    wrong, unknown = behaviours(model, tasks, n_prompts=6)
    assert not wrong.does
    assert "the model does not do the task" in wrong.why_not
    assert (unknown.n_prompts, unknown.does) == (0, False)
    assert "for models that have read code" in unknown.why_not
    table = behaviours_table([wrong, unknown])
    assert list(table["task"]) == ["exchanged", "brackets"]
    assert table["margin"].isna().tolist() == [False, True]


def test_a_wrong_answer_that_wins_is_no_behaviour_whatever_the_margin(model, monkeypatch):
    """Above the ablated run by far, and still below the wrong answer."""

    def prepare(model, prompts, *, metric):
        experiment = prepare_experiment(model, prompts, metric=metric)
        logits = torch.zeros(len(prompts), model.cfg.d_vocab)
        logits[torch.arange(len(prompts)), prompts.wrong_answers[:, 0]] = 1.0
        full = torch.full((len(prompts),), -1.0)
        # What is computed when it is first asked for is kept there.
        vars(experiment).update(clean_logits=logits, full=full, empty=full - 3)
        return experiment

    monkeypatch.setattr(module, "prepare_experiment", prepare)
    (found,) = behaviours(model, [get_task("ioi")], n_prompts=4)
    assert found.margin == 3
    assert not found.does
    assert found.why_not == "the right answer beats the wrong one in 0% of the prompts only"


def test_a_task_of_few_prompts_is_measured_on_those_that_there_are(model):
    def few(tokenizer, n, seed):
        return get_task("ioi").pairs(tokenizer, min(n, 3), seed)

    (found,) = behaviours(model, [Task("few", "", "logit_diff", few)], n_prompts=20)
    assert found.n_prompts == 3


@pytest.mark.slow
def test_the_command_shows_and_writes_the_table(capsys, tmp_path):
    out = tmp_path / "does.csv"
    assert main(["tasks", "--model", "dense", "--prompts", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "for models that have read code" in printed
    lines = out.read_text().splitlines()
    assert lines[0].startswith("task,metric,n_prompts,right_beats_wrong,top,full,margin")
    assert len(lines) == 8
    assert main(["tasks", "--model", "dense", "--prompts", "1"]) == 2
    assert "at least 2 prompts" in capsys.readouterr().err
