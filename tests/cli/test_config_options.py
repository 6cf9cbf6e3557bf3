"""A command's options are the fields of its config; a recipe file gives them too."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import typer

from circuits.choices import ATTRIBUTION_METHODS
from circuits.cli import main
from circuits.cli.config_options import ThemedCommand, with_config_options
from circuits.recipe import write_recipe
from circuits.results.discover_config import DiscoverConfig
from circuits.settings import kinds_of, settings_of
from circuits.sparsify.config import TrainConfig

DISCOVER = {
    "target": 0.5,
    "granularities": ("mlp", "head"),
    "method": "integrated_gradients",
    "method_options": {"steps": 3, "note": "a=b", "exact": True},
    "selection": "signed",
    "ablation": "zero",
    "gates": "clean",
    "n_prompts": 7,
    "seed": 5,
    "redraws": 4,
    "prune": True,
    "prune_margin": 1.5,
}
FIELDS = list(settings_of(TrainConfig))
NEEDED = {
    "epsilon": {"bound": "kl"},
    "accumulate": {"batch_size": 32},
    "tau": {"slack": 0.0},
    "layer_steps": {"lora_rank": 2},
}


def make_app(seen: list[Any]) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @with_config_options
    def train(config: TrainConfig, name: Annotated[str, typer.Option()] = "none") -> None:
        seen.append((config, name))

    app.command(cls=ThemedCommand)(train)
    return app


def config_from(*arguments: str) -> TrainConfig:
    """The config that a command with these options is called with."""
    seen: list[Any] = []
    make_app(seen)(args=list(arguments), standalone_mode=False)
    ((config, _),) = seen
    return config


def other_value(name: str) -> Any:
    """An allowed value of a field that is not its default."""
    default, kind = getattr(TrainConfig, name), kinds_of(TrainConfig)[name]
    if kind is bool:
        return not default
    if kind is int:
        return 2 * default or 1
    if kind is str:
        rule = settings_of(TrainConfig)[name].rule
        assert rule is not None
        known = rule.words.removeprefix("one of ").split(", ")
        return next(one for one in known if one != default)
    return default / 2 if default else 0.5


def as_options(values: dict[str, Any]) -> list[str]:
    options = []
    for name, value in values.items():
        long = name.replace("_", "-")
        if name == "gate":
            options.append("--gate" if value else "--control")
        elif isinstance(value, bool):
            options.append(f"--{long}" if value else f"--no-{long}")
        else:
            options += [f"--{long}", str(value)]
    return options


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_set_on_the_command_line_and_in_a_recipe(
    name: str, tmp_path: Path
) -> None:
    values = {**NEEDED.get(name, {}), name: other_value(name)}
    assert config_from(*as_options(values)) == TrainConfig(**values)
    write_recipe(tmp_path / "recipe.toml", values)
    assert config_from("--config", str(tmp_path / "recipe.toml")) == TrainConfig(**values)


def discover_config_from(
    *arguments: str, before: Callable[[], None] = lambda: None
) -> DiscoverConfig:
    seen: list[DiscoverConfig] = []
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @with_config_options
    def find(config_of: Callable[[], DiscoverConfig]) -> None:
        before()
        seen.append(config_of())

    app.command()(find)
    app(args=list(arguments), standalone_mode=False)
    return seen[0]


def test_a_discovery_is_set_by_options_and_by_a_recipe(tmp_path: Path) -> None:
    assert list(DISCOVER) == list(settings_of(DiscoverConfig))
    given = discover_config_from(
        "--target", "0.5", "--granularity", "mlp", "--granularity", "heads", "--method", "eap-ig",
        "--method-option", "steps=3", "--method-option", "note=a=b", "--method-option",
        "exact=true", "--selection", "signed", "--ablation", "zero", "--gates", "clean",
        "--prompts", "7", "--seed", "5", "--redraws", "4", "--prune",
        "--prune-margin", "1.5",
    )  # fmt: skip
    assert given == DiscoverConfig(**DISCOVER)
    recipe = tmp_path / "recipe.toml"
    write_recipe(recipe, dataclasses.asdict(given))
    assert discover_config_from("--config", str(recipe)) == given
    others = ("--no-prune", "--prune-margin", "0", "--granularity", "edge")
    changed = discover_config_from("--config", str(recipe), *others)
    expected = dataclasses.replace(given, prune=False, prune_margin=0.0, granularities=("edge",))
    assert changed == expected
    assert discover_config_from() == DiscoverConfig()


@pytest.mark.parametrize(
    ("command", "recipe", "message"),
    [
        ("discover", "prompts = 3", "r.toml: unknown setting 'prompts'; did you mean 'n_prompts'?"),
        ("discover", "granularities = 'head'", "r.toml: granularities must be a list of texts"),
        ("compare", "granularities = ['neuron']", "r.toml: unknown granularity 'neuron'"),
        ("compare", "n_prompts = 1", "r.toml: at least 2 prompts are needed"),
        ("compare", "method_options = 3", "r.toml: method_options must be a table, got 3"),
        ("discover", "method_options = {steps = 3}", "attribution_patching has no option 'steps'"),
    ],
)
def test_a_bad_recipe_of_a_discovery_is_refused(
    command: str, recipe: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(recipe)
    out = tmp_path / "out"
    assert main([command, "--config", str(tmp_path / "r.toml"), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_recipe_may_name_a_method_that_the_command_gets_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.toml").write_text("method = 'mine'")
    arguments = ["--config", str(tmp_path / "r.toml")]
    with pytest.raises(ValueError, match=r"r\.toml: unknown method 'mine'"):
        discover_config_from(*arguments)

    def register() -> None:  # As the file of a task does.
        monkeypatch.setitem(cast(dict[str, str], ATTRIBUTION_METHODS), "mine", "Mine.")

    assert discover_config_from(*arguments, before=register).method == "mine"


def test_without_options_all_is_by_default() -> None:
    assert config_from() == TrainConfig()


def test_options_go_before_the_recipe_and_the_recipe_before_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    write_recipe(recipe, {"steps": 7, "slack": 0.5, "compile": True, "gate": False})
    expected = TrainConfig(steps=7, slack=0.5, compile=True, gate=False)
    assert config_from("--config", str(recipe)) == expected
    # The value given may be the default: given is given.
    found = config_from("--steps", "2500", "--no-compile", "--config", str(recipe), "--gate")
    assert found == TrainConfig(slack=0.5)


def test_help_has_each_field_once_under_its_theme() -> None:
    command: Any = typer.main.get_command(make_app([]))
    shown = command.get_help(command.make_context("train", ["--help"], resilient_parsing=True))
    for name, one in settings_of(TrainConfig).items():
        long = (one.option or f"--{name.replace('_', '-')}").split("/")[0]
        (place,) = re.finditer(rf"^  {long} ", shown, flags=re.M)
        headings = re.findall(r"^(\S.*):$", shown[: place.start()], flags=re.M)
        assert headings[-1] == one.theme
    assert re.search(r"^  --penalty .*One of\s+mean, rms, log", shown, flags=re.M | re.S)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("step = 3", [], "recipe.toml: unknown setting 'step'; did you mean 'steps'?"),
        ("steps = '3'", [], "recipe.toml: steps must be a whole number, got '3'"),
        ("steps = 0", [], "recipe.toml: bad training config: steps is 0; it must be a whole"),
        # A recipe must be right by itself, whatever is given along with it.
        ("steps = 0", ["--steps", "3"], "recipe.toml: bad training config: steps is 0"),
        ("epsilon = 1", [], "recipe.toml: bad training config: epsilon is 1.0; it must be left"),
        ("context = 0", [], "recipe.toml: context is 0; it must be a whole number >= 1"),
        ("text = 'a'\ndata = 'b'", [], "recipe.toml: give text or data, not both"),
        ("steps = 3", ["--slack", "-1"], "bad training config: slack is -1.0"),
        ("out = 'run'", [], "recipe.toml: unknown setting 'out'"),
        ("trust_remote_code = true", [], "recipe.toml: unknown setting 'trust_remote_code'"),
    ],
)
def test_a_bad_recipe_is_refused_before_any_work(
    recipe: str,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe)
    out = tmp_path / "run"
    code = main(["train", "--config", str(tmp_path / "recipe.toml"), "--out", str(out), *options])
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


@pytest.mark.slow
def test_a_run_repeated_from_its_recipe_has_the_same_bits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [
        "train", "--context", "16", "--steps", "2", "--batch-size", "2",
        "--seed", "3", "--tau", "20", "--bias", "0.5", "--control-every", "1",
        "--control-sequences", "2", "--selection-sequences", "2", "--margin", "0.1",
    ]  # fmt: skip
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*arguments, "--out", str(first)]) == 0, capsys.readouterr().err
    recipe = str(first / "recipe.toml")
    assert main(["train", "--config", recipe, "--out", str(second)]) == 0, capsys.readouterr().err
    for name in ("recipe.toml", "model/model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    # The run goes on with its own recipe, and with no other one.
    again = ["train", "--config", recipe, "--out", str(first), "--resume"]
    assert main(again) == 0, capsys.readouterr().err
    assert main([*again, "--margin", "0.2"]) == 1
    assert "config.margin was 0.1 and is 0.2" in capsys.readouterr().err
