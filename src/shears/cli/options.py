"""The typer application, and options made from configurations, so that a flag is a field."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from shears.config import Recipe
from shears.config.fields import Repeated, StageConfig
from shears.config.resolve import build, stage_values
from shears.records.artifacts import __version__

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # a class that typer does not export
FIRST = (
    "data", "columns", "target", "time", "sparsity", "method", "calibration", "ranks", "sub_adapter", "alpha",
    "groups", "learning_rate", "epochs", "batch_size", "teacher", "quantize_aware", "format", "dtype",
    "dtypes", "task", "max_new_tokens", "temperature", "tokens", "strategy", "max_evaluations", "host", "port",
)  # fmt: skip
"""Fields whose flags --help shows, in this order; --help-all also shows the others, under MORE."""
MORE = "More"
ALIASES: Mapping[str, str] = {
    "alpha": "--lora-alpha", "groups": "--target-modules", "recompute": "--gradient-checkpointing",
    "train.ranks": "--lora-r",
}  # fmt: skip
"""PEFT's and transformers' names of flags, by field or by section and field."""
METAVARS: Mapping[str, str] = {
    **dict.fromkeys(("data", "test", "validation", "calibration"), "FILE"),
    **dict.fromkeys(("output", "include_path", "against"), "FOLDER"),
    "teacher": "MODEL", "tokens": "COUNT", "heal": "COUNT", "target": "BITS|SIZE|SPEED",
    "device": "auto|cpu|cuda|mps", "pattern": "row|N:M", "storage": "URL",
}  # fmt: skip
"""The kind of value of fields whose type does not say it."""
HELP = """Sparse fine-tuning that stays sparse.

Prune a language model, train elastic LoRA adapters on it, search the best sub-adapter, export it
for other tools.

Run all stages on a small model from PyPI and built-in examples:

\b
shears init
shears run quickstart.yaml
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text)


def option(metavar: str, text: str, **rest: Any) -> Any:
    return typer.Option(metavar=metavar, help=text, **rest)


def switch(name: str, text: str, **rest: Any) -> Any:
    return typer.Option(name, help=text, **rest)


def _print_version(is_given: bool | None) -> None:  # typer's callback of an eager option
    if is_given:
        print(f"shears {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    threads: Annotated[
        int | None,
        option(
            "INTEGER",
            "Number of CPU threads (default: one per core). More than free cores is far slower.",
            min=1,
        ),
    ] = None,
    version: Annotated[
        bool | None, switch("--version", "Print the version.", callback=_print_version, is_eager=True)
    ] = None,
) -> None:
    """Apply the options of every verb."""
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        from shears.models.devices import set_threads

        set_threads(threads)


def _print_all_help(context: Any, is_given: bool | None) -> None:  # typer's eager callback
    if is_given:
        hidden = [each for each in context.command.params if getattr(each, "hidden", False)]
        for parameter in hidden:
            parameter.hidden = False
        print(context.get_help())
        for parameter in hidden:
            parameter.hidden = True
        raise typer.Exit


HELP_ALL = Annotated[bool | None, switch("--help-all", "Show every option.", callback=_print_all_help, is_eager=True)]
Adapter = Annotated[str | None, option("FOLDER", "PEFT adapter to load; a package has its own.")]
Json = Annotated[bool, switch("--json", "Print JSON instead of text.")]
CONFIG = Annotated[str | None, option("FILE", "Recipe with this verb's keys; flags override them.")]
SET = Annotated[
    list[str] | None,
    switch("--set", "Set a key, such as train.alpha=32. May be repeated.", metavar="KEY=VALUE"),
]
WIDEST = 16  # characters of the choices beside a flag; more stand in the description
Values = dict[str, Any]  # the keys of a stage, after flags, --set and --config were merged


def with_stage_options(
    section: str, kind: type[StageConfig], only: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a verb an option for each field of `kind`, or of `only`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(verb).parameters.values())[:-1]
        fields = {name: field for name, field in kind.model_fields.items() if not only or name in only}
        names = sorted(fields, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
        options = [_parameter(section, name, fields[name]) for name in names]
        shared = [_keyword("config", CONFIG), _keyword("set_", SET)] if section in Recipe.model_fields else []
        if any(_is_hidden(name, field) for name, field in fields.items()):
            shared.append(_keyword("help_all", HELP_ALL))

        def values_of(arguments: dict[str, Any]) -> Values:
            arguments.pop("help_all", None)
            flags = {name: arguments.pop(name, None) for name in kind.model_fields}
            return stage_values(section, arguments.pop("config", None), arguments.pop("set_", None) or [], flags)

        def command(**arguments: Any) -> None:
            values = values_of(arguments)
            if not only:
                build(kind, section, values)  # before the library's imports, which take seconds
            verb(**arguments, values=values)

        if not only:  # checks the values of a documented call without running it
            command.check = lambda given: build(kind, section, values_of(dict(given)))  # type: ignore[attr-defined]

        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        required = [each for each in keywords if each.default is inspect.Parameter.empty]
        parameters = [*required, *options, *[each for each in keywords if each not in required], *shared]
        command.__name__ = verb.__name__
        command.__doc__ = verb.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _is_hidden(name: str, field: FieldInfo) -> bool:
    return not field.is_required() and name not in FIRST


def _parameter(section: str, name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    others = [ALIASES[key] for key in (name, f"{section}.{name}") if key in ALIASES]
    kind = METAVARS.get(name) or metavar(field.annotation)
    choices = f"One of {kind.replace('|', ', ')}." if len(kind) > WIDEST else ""
    look: dict[str, Any] = {
        "help": " ".join(filter(None, [field.description, choices, _default_text(field)])),
        "rich_help_panel": MORE if _is_hidden(name, field) else None,
        "hidden": _is_hidden(name, field),
        "show_default": False,
    }
    if field.annotation is bool:
        return _keyword(name, Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", *others, **look)])
    is_repeated = any(isinstance(mark, Repeated) for mark in field.metadata)
    look["metavar"] = "TEXT" if is_repeated else "NAME" if choices else kind
    value: Any = list[str] if is_repeated else str
    return _keyword(name, Annotated[value | None, typer.Option(flag, *others, **look)])


def _default_text(field: FieldInfo) -> str:
    default = None if field.is_required() else field.default
    if default in (None, (), {}):
        return ""
    if isinstance(default, bool):
        return f"(default: {'yes' if default else 'no'})"
    values = default if isinstance(default, tuple) else (default,)
    return f"(default: {','.join(f'{each:g}' if isinstance(each, float) else str(each) for each in values)})"


def metavar(annotation: Any) -> str:
    """Return the kind of value of a field's type, such as INTEGER or the choices joined by |."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return metavar(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, UnionType):
        return metavar(next(option for option in arguments if option is not type(None)))
    names: Mapping[Any, str] = {int: "INTEGER", float: "NUMBER", tuple: "A,B,...", dict: "A=X,..."}
    return names.get(origin or annotation, "TEXT")
