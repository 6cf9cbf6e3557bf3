import json
import resource
import shutil
import subprocess
import sys
from importlib.metadata import version

import pandas as pd
import pytest

from circuits.cli import main
from tests.fake_comparison import make_comparison
from tests.helpers import folder_of


def run(capsys, *arguments):
    code = main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.slow
def test_help_does_not_import_torch():
    code = (
        "import sys; from circuits.cli import main; code = main(['--help']);"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules; sys.exit(code)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "compare" in finished.stdout


@pytest.mark.slow
def test_compare_writes_tables_circuits_figures_and_the_report(capsys, tmp_path, small_pair):
    out = tmp_path / "results"
    code, printed, error = run(
        capsys, "compare", "--dense", str(small_pair.dense), "--sparse", str(small_pair.sparse),
        "--task", "pronoun", "--prompts", "10", "--redraws", "2",
        "--granularity", "head", "--granularity", "mlp", "--out", str(out),
    )  # fmt: skip
    assert code == 0, error
    summary = pd.read_csv(out / "summary.csv")
    assert list(summary.columns) == list(make_comparison().summary_table().columns)
    assert list(summary["granularity"]) == ["head", "mlp"]
    for side in ("dense", "sparse"):
        assert all(summary[f"faithfulness_{side}"].ge(0.6))
    assert set(summary["measured_on"]) == {"reporting"}
    assert set(summary["interval"]) == {"halves of ranking and sizing prompts"}
    assert "on 10 fresh prompts" in printed
    models = pd.read_csv(out / "models.csv")
    assert list(models.columns) == [
        "model", "task", "metric", "accuracy", "ce", "density", "context",
        "tokenizer",
    ]  # fmt: skip
    assert json.loads((out / "circuits" / "pronoun.sparse.head.json").read_text())["edges"]
    assert (out / "report.html").stat().st_size < 8e6
    assert "ratio" in printed
    assert not list(tmp_path.glob(".results*"))


@pytest.mark.slow
def test_a_behaviour_that_a_model_does_not_do_does_not_lose_the_others(
    capsys, tmp_path, small_pair
):
    rows = [
        f'"When {a} and {b} went to the store, {b} gave a ring to",'
        f'"When {a} and {b} went to the store, David gave a ring to",{b},{a}'
        for a in ("Mary", "Alice", "Anna")
        for b in ("John", "James", "Mark")
    ]
    pairs = tmp_path / "giver.csv"
    pairs.write_text("clean,corrupted,answer,wrong_answer\n" + "\n".join(rows) + "\n")
    out = tmp_path / "results"
    arguments = [
        "compare", "--dense", str(small_pair.dense), "--sparse", str(small_pair.sparse),
        "--prompts", "3", "--granularity", "mlp", "--task", str(pairs),
    ]  # fmt: skip
    code, _, error = run(capsys, *arguments, "--out", str(out))
    assert code == 1
    assert "nothing is left to compare; task giver: dense model: the model does not do" in error
    assert not out.exists()
    code, printed, error = run(capsys, *arguments, "--task", "pronoun", "--out", str(out))
    assert code == 0, error
    assert "giver is not compared. dense model: the model does not do the task" in printed
    summary = pd.read_csv(out / "summary.csv").set_index("task")
    assert summary.loc["pronoun", "dense"] > 0
    assert summary.loc["giver", "dense"] != summary.loc["giver", "dense"]
    assert "sparse model: the model does not do the task" in summary.loc["giver", "note"]
    assert (
        "not compared. dense model: the model does not do the task"
        in (out / "report.html").read_text()
    )


@pytest.mark.newest
@pytest.mark.slow
def test_discover_writes_one_file(capsys, tmp_path):
    out = tmp_path / "found.json"
    code, printed, _ = run(
        capsys, "discover", "--model", "sparse", "--task", "greater-than",
        "--prompts", "20", "--redraws", "2", "--granularity", "mlps",
        "--method", "eap-ig", "--method-option", "steps=2", "--out", str(out),
    )  # fmt: skip
    assert code == 0
    found = json.loads(out.read_text())
    assert found["task"] == "greater_than"
    assert found["config"]["method"] == "integrated_gradients"
    assert found["config"]["method_options"] == {"steps": 2}
    assert "greater_than" in printed


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_has_two_names(capsys, option):
    code, printed, _ = run(capsys, "compare", option)
    assert code == 0
    assert "--dense" in printed


def test_the_version_is_told(capsys):
    code, printed, _ = run(capsys, "--version")
    assert code == 0
    assert printed.split() == ["circuits", version("sparse-circuits")]


def test_tasks_lists_and_shows_prompts(capsys):
    code, printed, _ = run(capsys, "tasks")
    assert code == 0
    assert "ioi" in printed
    assert "greater_than" in printed
    code, printed, _ = run(capsys, "tasks", "ioi", "--show", "2")
    assert code == 0
    assert printed.count("clean") == 2


def test_models_lists_the_embedded_pair_with_its_gate(capsys):
    code, printed, _ = run(capsys, "models")
    assert code == 0
    assert "dense-finetuned" in printed
    assert "0.578 % open, T = 128" in printed
    assert max(map(len, printed.splitlines()[:9])) <= 80
    code, printed, _ = run(capsys, "models", "sparse")
    assert code == 0
    assert "architecture  GPT2LMHeadModel" in printed


def test_at_80_columns_no_task_is_cut(capsys):
    code, printed, _ = run(capsys, "tasks", "--model", "dense", "--prompts", "2")
    assert code == 0
    assert "greater_than" in printed
    assert "subject_verb" in printed
    assert "…" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--dense", "no-such-model"], "unknown model 'no-such-model'"),
        (["compare", "--task", "iio"], "unknown task 'iio'"),
        (["compare", "--device", "tpu"], "device"),
        (["compare", "--granularity", "neuron"], "unknown granularity 'neuron'"),
        (["discover", "--gates", "open"], "unknown gates 'open'"),
        (["discover", "--method-option", "steps"], "write NAME=VALUE, such as steps=10"),
        (["discover", "--method-option", "steps=2"], "attribution_patching has no option 'steps'"),
        (["compare", "--gates", "open"], "unknown gates 'open'"),
        (["compare", "--method", "magic"], "unknown method 'magic'"),
        (["compare", "--selection", "luck"], "unknown selection 'luck'"),
        (["compare", "--target", "1.5"], "target"),
        (["compare", "--prompts", "1"], "at least 2 prompts"),
        (["compare", "--model", "control"], "give NAME=MODEL"),
        (["compare", "--model", "a=dense", "--model", "a=sparse"], "two models are called 'a'"),
        (["compare", "--no-such-flag"], "No such option"),
        (["discover", "--task", "missing.csv"], "no file of prompt pairs"),
        (["train", "--out", "x", "--steps", "0"], "steps"),
        (["train", "--out", "x", "--bound", "kl", "--slack", "1"], "slack is 1.0; it must be left"),
        (["train", "--out", "x", "--epsilon", "1"], "epsilon is 1.0; it must be left out where"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_usage_exits_2_with_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_models(monkeypatch):
    """Loading a model is a failure: what is refused must be refused before."""

    def load(*_arguments, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("circuits.models.load.load_model", load)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["discover", "--out", "file"], "file is a file; give a folder"),
        (["discover", "--out", "/dev/full"], "/dev/full is neither a file nor a folder"),
        (["discover", "--out", "file/x.json"], "there is no folder file"),
        (["compare", "--out", "file"], "file is a file; give a folder"),
        (["compare", "--out", "/dev/full"], "/dev/full is neither a file nor a folder"),
        (["robustness", "--out", "file"], "file is a file; give a folder"),
        (["robustness", "--out", "file/deep"], "file is a file; give a folder"),
        (["figures", "results", "--out", "file"], "file is a file; give a folder"),
        (["compare", "--task", "ioi", "--task", "ioi"], "the task 'ioi' is given twice"),
        (["robustness", "--task", "ioi", "--task", "ioi"], "the task 'ioi' is given twice"),
        (["discover", "--task", "ioi.csv"], "would be called 'ioi', as a registered task is"),
        (
            ["compare", "--task", "a/pairs.csv", "--task", "b/pairs.csv"],
            "'pairs' (1 prompt pairs of a/pairs.csv) and 'pairs' (1 prompt pairs of b/pairs.csv)",
        ),
        (["compare", "--task", "x y.csv", "--task", "x_y.csv"], "pairs of x y.csv) and"),
        (["compare", "--model", "a/b=dense", "--model", "a_b=dense"], "models 'a/b' and 'a_b'"),
    ],
)  # fmt: skip
def test_paths_and_names_are_checked_first(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "a", "b", "results"):
        (tmp_path / folder).mkdir()
    for name in ("ioi.csv", "a/pairs.csv", "b/pairs.csv", "x y.csv", "x_y.csv"):
        (tmp_path / name).write_text("clean,corrupted,answer,wrong_answer\na b,a c,d,e\n")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "results" / "comparison.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert message in error.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_something_else_is_refused_before_any_work(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    code, _, error = run(capsys, "compare", "--out", str(tmp_path))
    assert code == 2
    assert "holds other files" in error
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_failure_exits_1_and_shows_a_traceback_only_with_debug(capsys, tmp_path):
    pairs = tmp_path / "pairs.csv"
    # The giver for an answer: the whole model does worse at this than an ablated one.
    lines = [
        f'"When {a} and {b} went to the store, {b} gave a ring to",'
        f'"When {a} and {b} went to the store, David gave a ring to",{b},{a}'
        for a in ("Mary", "Alice", "Anna")
        for b in ("John", "James", "Mark")
    ]
    pairs.write_text("clean,corrupted,answer,wrong_answer\n" + "\n".join(lines) + "\n")
    arguments = ["discover", "--task", str(pairs), "--prompts", "3", "--out", str(tmp_path / "o")]
    code, _, error = run(capsys, *arguments)
    assert code == 1
    assert "does not do the task" in error
    assert "Traceback" not in error
    code, _, error = run(capsys, "--debug", *arguments)
    assert code == 1
    assert "Traceback" in error


@pytest.mark.slow
def test_ctrl_c_exits_130_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("circuits.comparison.compare_models.compare", interrupted)
    code, _, error = run(capsys, "compare", "--out", str(tmp_path / "results"))
    assert code == 130
    assert "interrupted" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.newest
@pytest.mark.slow
def test_train_makes_a_sparse_model_that_compare_can_load(capsys, tmp_path):
    out = tmp_path / "run"
    code, printed, error = run(
        capsys, "train", "--out", str(out), "--steps", "2", "--batch-size", "2", "--context", "32",
        "--tau", "20", "--ce-weight", "0", "--distillation", "2", "--lambda-warm-up", "0.25",
    )  # fmt: skip
    assert code == 0, error
    assert "bound 20.0000 nats" in printed
    assert "open at T = 32" in printed
    config = json.loads((out / "run.json").read_text())["config"]
    assert (config["ce_weight"], config["distillation"], config["lambda_warm_up"]) == (0, 2, 0.25)
    code, printed, _ = run(capsys, "models", str(out / "model"))
    assert code == 0
    assert "bias          0.0" in printed


@pytest.mark.slow
def test_low_rank_training_of_a_named_model_saves_an_adapter(capsys, tmp_path):
    arguments = [
        "train", "--lora-rank", "2", "--steps", "2", "--batch-size", "2", "--context", "32",
        "--slack", "9",
    ]  # fmt: skip
    code, printed, error = run(capsys, *arguments, "--out", str(tmp_path / "run"))
    assert code == 0, error
    assert "(an adapter of dense)" in printed
    folder = tmp_path / "run" / "model"
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {
        "adapter_config.json", "adapter_model.safetensors", "gate.json", "base.json",
    }  # fmt: skip
    assert sum(files.values()) < 300_000
    code, printed, _ = run(capsys, "models", str(folder))
    assert code == 0
    assert "is an adapter of dense" in printed and "bias          0.0" in printed
    code, printed, error = run(
        capsys, *arguments, "--control", "--save", "merged", "--out", str(tmp_path / "merged")
    )
    assert code == 0, error
    assert (tmp_path / "merged" / "model" / "model.safetensors").is_file()
    shutil.copytree(folder_of("dense"), tmp_path / "own")
    code, printed, error = run(
        capsys, *arguments, "--model", str(tmp_path / "own"), "--out", str(tmp_path / "third")
    )
    assert code == 0, error
    assert (tmp_path / "third" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("save", "message"),
    [
        ("adapter", "needs low-rank updates; give --lora-rank"),
        ("zip", "save is 'zip'; it must be one of"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(save, message, capsys, tmp_path):
    code, _, error = run(capsys, "train", "--save", save, "--out", str(tmp_path / "run"))
    assert code == 2
    assert message in " ".join(error.split())


@pytest.mark.slow
def test_a_control_is_trained_without_a_gate(capsys, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--control", "--out", str(out), "--steps", "2", "--batch-size", "2"]
    code, printed, error = run(capsys, *arguments, "--context", "32", "--learning-rate", "1e-5")
    assert code == 0, error
    assert "control CE" in printed
    saved = out / "model" / "model.safetensors"
    assert saved.is_file()
    assert not (out / "model" / "gate.json").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    weights = saved.read_bytes()
    saved.unlink()  # As if it had been killed before the model was written.
    again = [*arguments, "--context", "32", "--learning-rate", "1e-5", "--resume"]
    code, _, error = run(capsys, *again)
    assert code == 0, error
    assert saved.read_bytes() == weights
    code, _, error = run(capsys, *(one for one in again if one != "--control"))
    assert code == 1
    assert "config.gate was False and is True" in error


@pytest.mark.slow
def test_controls_are_trained_from_several_seeds(capsys, tmp_path):
    out = tmp_path / "controls"
    code, printed, error = run(
        capsys, "train", "--control", "--twins", "2", "--out", str(out), "--steps", "1",
        "--batch-size", "2", "--context", "32",
    )  # fmt: skip
    assert code == 0, error
    assert printed.count("control CE") == 2
    first, second = ((out / f"seed{n}" / "model" / "model.safetensors") for n in (0, 1))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.slow
def test_twins_are_trained_from_several_seeds_and_go_on(capsys, tmp_path):
    out = tmp_path / "twins"
    arguments = [
        "train", "--twins", "2", "--seed", "5", "--out", str(out), "--steps", "2",
        "--batch-size", "2", "--context", "32", "--slack", "100",
    ]  # fmt: skip
    code, printed, error = run(capsys, *arguments)
    assert code == 0, error
    weights = [out / f"seed{seed}" / "model" / "model.safetensors" for seed in (5, 6)]
    first, second = (path.read_bytes() for path in weights)
    assert first != second
    shutil.rmtree(out / "seed6")  # As if it had been killed before the second.
    code, _, error = run(capsys, *arguments, "--resume")
    assert code == 0, error
    assert [path.read_bytes() for path in weights] == [first, second]
    code, _, error = run(capsys, *arguments[:2], "0", *arguments[3:])
    assert code == 2
    assert "--twins is 0; train at least 1" in error


@pytest.mark.slow
def test_other_models_stand_beside_the_pair(capsys, tmp_path, small_pair):
    out = tmp_path / "results"
    code, printed, error = run(
        capsys, "compare", "--dense", str(small_pair.dense), "--sparse", str(small_pair.sparse),
        "--task", "pronoun", "--prompts", "12", "--redraws", "2", "--granularity", "mlp",
        "--model", f"highest={small_pair.dense}@top4", "--twin", "second=sparse-seed1",
        "--out", str(out),
    )  # fmt: skip
    assert code == 0, error
    others = pd.read_csv(out / "others.csv").set_index("model")
    assert list(others.index) == ["sparse", "highest", "second"]
    assert 0.05 < others.loc["highest", "density"] < 0.07
    (seeds,) = pd.read_csv(out / "seeds.csv").to_dict("records")
    ratios = others.loc[["sparse", "second"], "ratio"]
    assert seeds["seeds"] == 2
    assert seeds["ratio"] == pytest.approx(ratios.prod() ** 0.5)
    assert (seeds["smallest"], seeds["largest"]) == (ratios.min(), ratios.max())
    assert "Over training seeds" in printed


@pytest.mark.slow
def test_train_that_cannot_keep_the_bound_exits_1(capsys, tmp_path):
    code, _, error = run(
        capsys, "train", "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "2",
        "--context", "32",
    )  # fmt: skip
    assert code == 1
    assert "no state kept the bound" in error


@pytest.mark.slow
def test_a_full_disk_ends_training_with_one_line_and_resume_goes_on(capsys, tmp_path):
    arguments = [
        "train", "--control", "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "2",
        "--context", "32",
    ]  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        code, _, error = run(capsys, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    told = error.splitlines()[-1]
    assert told.startswith(f"circuits: {tmp_path / 'run' / 'checkpoints' / 'step_00000001'} could ")
    assert "go on with resume=True (--resume)" in told
    assert "Traceback" not in error
    code, _, error = run(capsys, *arguments, "--resume")
    assert code == 0, error
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_robustness_writes_a_table_and_a_figure(capsys, tmp_path, small_pair):
    code, shown, error = run(
        capsys, "robustness", "--dense", str(small_pair.dense), "--sparse", str(small_pair.sparse),
        "--task", "pronoun", "--granularity", "head", "--prompts", "6", "--method",
        "attribution-patching", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, error
    assert "pronoun, head: of" in shown
    table = pd.read_csv(tmp_path / "out" / "robustness.csv")
    assert set(table["ablation"]) == {"corrupted", "mean", "zero"}
    assert (tmp_path / "out" / "robustness.html").stat().st_size > 1e6


def test_robustness_of_attention_edges_is_refused(capsys, tmp_path):
    arguments = ["robustness", "--granularity", "attention_edge", "--out", str(tmp_path / "out")]
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert "no robustness table" in error
