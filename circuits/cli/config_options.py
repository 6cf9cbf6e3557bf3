"""Options from configs: a command takes a config, and the user sets its fields.

    @with_config_options
    def train_command(out: Annotated[Path, typer.Option()], config: TrainConfig) -> None: ...

A parameter whose type is a dataclass of settings (circuits/settings.py) stands for an option a
field, with the field's default, sentence and theme. Next to them is `--config`, a recipe file for
all of these fields; what is given on the command line goes before what stands in it. Where the type
is `Callable[[], DiscoverConfig]`, the command makes the config when it calls: after it has read the
file of a task, which may register what the config names.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from circuits.cli.console import usage_errors
from circuits.cli.launch import read_launch
from circuits.recipe import read_recipe
from circuits.settings import Setting, defaults_of, kinds_of, settings_of

RECIPE_OPTION = "recipe"
"""The parameter behind `--config`: a file of settings, such as the recipe.toml of a run."""


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns the command with an option for each field of the configs that it takes."""
    own = inspect.signature(command, eval_str=True).parameters
    configs: dict[str, Any] = {
        name: config_class
        for name, one in own.items()
        if dataclasses.is_dataclass(config_class := _config_class(one.annotation))
    }

    def run(ctx: Any, **options: Any) -> None:  # typer makes a context of another class, too
        read_launch()  # Only the first process says what is wrong.
        given = {name for name in options if _is_given(ctx, name)}
        path = options.pop(RECIPE_OPTION)
        with usage_errors():
            recipe = {} if path is None else read_recipe(path, *configs.values())
            for name, config_class in configs.items():
                fields = {field: options.pop(field) for field in settings_of(config_class)}
                make = partial(_config_of, config_class, fields, given, recipe, path)
                options[name] = make() if own[name].annotation is config_class else make
        command(**options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    parameters = [
        parameter.replace(kind=keyword)
        for parameter in own.values()
        if parameter.name not in configs
    ]
    file_option = typer.Option("--config", help="Settings from a recipe file (TOML). Options given "
                               "along with it override it.")  # fmt: skip
    parameters.append(
        inspect.Parameter(
            RECIPE_OPTION, keyword, default=None, annotation=Annotated[Path | None, file_option]
        )
    )
    for config_class in configs.values():
        parameters += _parameters_of(config_class)
    # typer reads name, help and options here.
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([context, *parameters])  # pyright: ignore
    run.__annotations__ = {}
    return run


def _config_class(annotation: Any) -> Any:
    """The class of a config that is taken, or of one that is made by a call."""
    return get_args(annotation)[-1] if get_origin(annotation) is Callable else annotation


def _is_given(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _config_of(
    config_class: type,
    options: dict[str, Any],
    given: Collection[str],
    recipe: dict[str, Any],
    path: Path | None,
) -> Any:
    """A config of what the recipe says, and of what the command line says before that.

    Raises:
        ValueError: the recipe is wrong by itself, which names its file, or together with options.
    """
    from_file = {name: value for name, value in recipe.items() if name in options}
    try:
        config = config_class(**from_file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    kinds = kinds_of(config_class)
    changes = {name: _value(options[name], kinds[name]) for name in options if name in given}
    return dataclasses.replace(config, **changes)


def _value(value: Any, kind: type) -> Any:
    """What a field holds for what typer read."""
    if kind is tuple:
        return tuple(value)
    return dict(map(named_value, value)) if kind is dict else value


def named_value(text: str) -> tuple[str, Any]:
    """Returns the name and the value in `NAME=VALUE`; all but numbers, true and false is text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--method-option is {text!r}; write NAME=VALUE, such as steps=10")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parameters_of(config_class: type) -> list[inspect.Parameter]:
    """The parameters from which typer makes the options of a config."""
    kinds, defaults = kinds_of(config_class), defaults_of(config_class)
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=list(defaults[name]) if kinds[name] in (tuple, dict) else defaults[name],
            annotation=Annotated[_read_as(kinds[name]), _option(name, one, kinds[name])],
        )
        for name, one in settings_of(config_class).items()
    ]


def _read_as(kind: type) -> Any:
    return list[str] if kind in (tuple, dict) else kind | None


def _option(name: str, setting: Setting, kind: type) -> Any:
    long = f"--{name.replace('_', '-')}"
    names = f"{long}/--no-{long.removeprefix('--')}" if kind is bool else long
    return typer.Option(
        setting.option or names, help=_help(setting, kind), rich_help_panel=setting.theme
    )


def _help(setting: Setting, kind: type) -> str:
    """The sentence, with the values to choose from."""
    if kind in (tuple, dict):
        return f"{setting.sentence} Repeatable."
    if kind is not str or setting.rule is None:
        return setting.sentence
    return f"{setting.sentence} {setting.rule.words.capitalize()}."


class ThemedCommand(TyperCommand):
    """A command whose `--help` shows its options under their themes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes a section for each theme, in the order in which they first come."""
        themes: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            theme = getattr(parameter, "rich_help_panel", None) or usual
            if (record := parameter.get_help_record(ctx)) is not None:
                themes.setdefault(theme, []).append(record)
        for theme, records in themes.items():
            with formatter.section(theme):
                formatter.write_dl(records)
