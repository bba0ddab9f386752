"""Build checked configurations from YAML files, `--set key=value` and flags."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shears.config import Recipe
from shears.config.fields import StageConfig
from shears.errors import InputError, reading

Config = TypeVar("Config", bound=StageConfig)


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 2:4 (124 in base 60 for YAML 1.1) and dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, known if tag.endswith(("bool", "null", "merge")) else re.compile(rf"(?!\S*:){known.pattern}", re.X))
            for tag, known in resolvers
            if not tag.endswith("timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader


def build(kind: type[Config], section: str, values: Mapping[str, Any]) -> Config:
    """Return the configuration; InputError with one message per wrong key if it is invalid."""
    try:
        return kind.model_validate({key: str(v) if isinstance(v, Path) else v for key, v in values.items()})
    except ValidationError as error:
        raise InputError(*(_explain(kind, section, detail) for detail in error.errors())) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return a recipe file's content; InputError unless it is a readable mapping of sections."""
    if not Path(path).exists():
        raise InputError(f"the recipe {path} must exist, got no such file; shears init writes one")
    with reading(path):
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"the recipe {path} must hold sections such as `sparsify:`, got {str(content)[:40]}")
    return content


def override(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return the recipe with `section.key=value` settings applied; values are parsed as YAML."""
    result = dict(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or not section:
            raise InputError(f"--set must be section.key=value, got {setting!r}; for example, --set train.alpha=32")
        try:
            value = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            value = text
        result[section] = {**_section(result, section), name: value} if name else value
    return result


def _section(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    content = values.get(section) or {}
    if not isinstance(content, dict):
        raise InputError(f"{section} must be a section of keys, got {content!r}")
    return content


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Return a recipe file with `--set` settings applied; an empty section has all defaults."""
    values = override(read_yaml(path), settings)
    for name, field in Recipe.model_fields.items():
        if field.default_factory is not None and values.get(name, ...) is None:
            values[name] = {}
    return build(Recipe, "", values)


def stage_values(section: str, config: str | None, settings: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of one stage: flags override --set, which overrides the recipe file."""
    values = override(read_yaml(config) if config else {}, settings)
    if unknown := [key for key in values if key not in Recipe.model_fields]:
        raise InputError(*(_unknown(key, "", list(Recipe.model_fields)) for key in unknown))
    return {**_section(values, section), **{name: value for name, value in flags.items() if value is not None}}


def _explain(kind: type[StageConfig], section: str, detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(filter(None, [section, *location]))
    if detail["type"] == "extra_forbidden":
        return _unknown(location[-1], name.rpartition(".")[0], list(section_class(kind, location[:-1]).model_fields))
    if detail["type"] == "missing":
        field = section_class(kind, location[:-1]).model_fields[location[-1]]
        return f"{name} must be given (--{location[-1].replace('_', '-')}): {' '.join(str(field.description).split())}"
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])  # about this field if it begins with must, or names one
        return f"{name} {text}" if text.startswith("must ") else ".".join(filter(None, [section, *location, text]))
    message = detail["msg"].partition(", unable to parse")[0]
    rule = re.sub("^(Input|String|Value|List|Tuple) should", "must", message)
    return f"{name} {rule}, got {detail['input']!r:.80}"


def section_class(kind: type[StageConfig], location: Sequence[str]) -> type[StageConfig]:
    """Return the class of a section of `kind`, such as TrainConfig for ['train'] of Recipe."""
    for part in location:
        annotation: Any = kind.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        kind = next(each for each in options if isinstance(each, type) and issubclass(each, StageConfig))
    return kind


def _unknown(key: str, section: str, known: Sequence[str]) -> str:
    full = ".".join(filter(None, [section, key]))
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"unknown key {full!r}; did you mean {'.'.join(filter(None, [section, close[0]]))!r}?"
    return f"unknown key {full!r}; known are {', '.join(known)}"
