"""Settings and the files that hold them: what is written is read, what is wrong is named."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.recipe import read_recipe, to_toml, write_recipe
from circuits.settings import kinds_of, settings_of
from circuits.sparsify.config import TrainConfig

PLAIN = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = PLAIN | st.lists(st.text()) | st.dictionaries(st.text(), PLAIN)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe") / "recipe.toml"


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True), VALUES))
def test_toml_reads_what_is_written(table: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def test_a_recipe_is_utf8_and_leaves_none_out(file: Path) -> None:
    write_recipe(file, {"tau": None, "penalty": "läuft\n\x7f"})
    assert file.read_bytes() == 'penalty = "läuft\\n\\u007f"\n'.encode()
    assert read_recipe(file, TrainConfig) == {"penalty": "läuft\n\x7f"}


@st.composite
def train_configs(draw: st.DrawFn) -> TrainConfig:
    """Configs with every field drawn, and no two of them in contradiction."""
    by_kind: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(1, 10**12),
        float: st.floats(0, allow_infinity=False, exclude_min=True),
    }
    values: dict[str, Any] = {}
    for name, one in settings_of(TrainConfig).items():
        kind = kinds_of(TrainConfig)[name]
        if kind is str:
            assert one.rule is not None
            known = one.rule.words.removeprefix("one of ").split(", ")
            values[name] = draw(st.sampled_from(known))
        else:
            assert one.rule is not None
            values[name] = draw(by_kind[kind].filter(one.rule.holds))
    values["batch_size"] *= values["accumulate"]
    values |= dict(zip(
        ("lambda_min", "lambda_start", "lambda_max"),
        sorted(draw(st.tuples(*[by_kind[float]] * 3))), strict=True,
    ))  # fmt: skip
    by_ce = {"epsilon": 0.02} | draw(st.sampled_from([{"tau": None}, {"slack": 0.0}]))
    by_kl = {"tau": None, "slack": 0.0, "ce_weight": 1.0, "distillation": 0.0}
    by_bound: dict[str, Any] = by_ce if values["bound"] == "ce" else by_kl
    return TrainConfig(**(values | by_bound))


@settings(max_examples=10, derandomize=True, deadline=None, database=None)
@given(train_configs())
def test_a_config_comes_back_from_its_recipe(file: Path, config: TrainConfig) -> None:
    file.write_text(to_toml(dataclasses.asdict(config)))
    again = TrainConfig(**read_recipe(file, TrainConfig))
    assert again == config
    assert {name: type(value) for name, value in dataclasses.asdict(again).items()} == {
        name: type(value) for name, value in dataclasses.asdict(config).items()
    }


def test_a_number_without_a_point_is_a_float_where_the_field_is_one(file: Path) -> None:
    file.write_text("slack = 1\nsteps = 3\n")
    found = read_recipe(file, TrainConfig)
    assert found == {"slack": 1.0, "steps": 3}
    assert [type(value) for value in found.values()] == [float, int]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "recipe.toml: unknown setting 'step'; did you mean 'steps'?"),
        ("x = 3", "recipe.toml: unknown setting 'x'; there are steps, batch_size"),
        ("[train]\nsteps = 3", "recipe.toml: unknown setting 'train'"),
        ("steps = '3'", "recipe.toml: steps must be a whole number, got '3'"),
        ("steps = 3.0", "recipe.toml: steps must be a whole number, got 3.0"),
        ("steps = true", "recipe.toml: steps must be a whole number, got True"),
        ("slack = true", "recipe.toml: slack must be a number, got True"),
        ("slack = nan", "recipe.toml: slack must be finite, got nan"),
        ("compile = 1", "recipe.toml: compile must be true or false, got 1"),
        ("penalty = 1", "recipe.toml: penalty must be a text in quotes, got 1"),
        ("penalty = ['rms']", "recipe.toml: penalty must be a text in quotes, got the list"),
        ("steps = 3\nsteps = 4", "recipe.toml is not readable as TOML: Cannot overwrite"),
        ("steps: 3", "recipe.toml is not readable as TOML"),
        ("steps = " + "9" * 5000, "recipe.toml is not readable as TOML"),
        ("steps = " + "[" * 5000, "recipe.toml is not readable as TOML"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_wrong_in_a_recipe_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError) as raised:
        read_recipe(file, TrainConfig)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.toml"):
        read_recipe(tmp_path / "none.toml", TrainConfig)


def test_help_and_the_docstring_say_each_field_once() -> None:
    for name, one in settings_of(TrainConfig).items():
        assert (TrainConfig.__doc__ or "").count(f"    {name}: {one.sentence}") == 1
        assert one.sentence.endswith(".")
