"""Build checked configurations from YAML files, `--set key=value` and flags."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shears.config import EvaluateConfig, Recipe, RunEvaluateConfig
from shears.config.fields import ALIASES, StageConfig, full_names
from shears.errors import InputError

Config = TypeVar("Config", bound=StageConfig)
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # of invalid YAML, impossible dates, endless brackets
ONLY_OF_RUNS = RunEvaluateConfig.model_fields.keys() - EvaluateConfig.model_fields.keys()
MOST_VALUES = 100_000  # in a YAML text; nested aliases make millions of values of a few lines
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 2:4 (124 in base 60 for YAML 1.1) and dates as text.

    A duplicate key is an error, as YAML specifies; PyYAML takes the last one.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, re.compile(rf"(?!\S*:){known.pattern}", re.VERBOSE) if tag in NUMBER_TAGS else known)
            for tag, known in resolvers
            if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping; MarkedYAMLError for a duplicate key (merged keys may be overridden)."""
        node = super().compose_mapping_node(anchor)
        keys = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                what = f"the key {key.value!r} stands twice"
                raise yaml.MarkedYAMLError(problem=what, problem_mark=key.start_mark)
            keys.add(key.value)
        return node


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text; one of UNREADABLE for any other text, or too many values."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node holds, aliases resolved; ValueError for MOST_VALUES and more."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # for an alias to a list inside itself
        is_list = isinstance(node, yaml.SequenceNode)
        children = node.value if is_list else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    if known[id(node)] >= MOST_VALUES:
        rule = f"it must hold fewer than {MOST_VALUES:,} values, its aliases counted"
        raise ValueError(f"{rule}; write it without aliases")
    return known[id(node)]


def build(kind: type[Config], section: str, values: Mapping[str, Any]) -> Config:
    """Return the configuration; InputError with one message per wrong key if it is invalid.

    Messages name keys behind `section`, such as `train`, which is empty for a whole recipe.
    """
    try:
        return kind.model_validate({key: str(v) if isinstance(v, Path) else v for key, v in values.items()})
    except ValidationError as error:
        raise InputError(*(_explain(kind, section, detail) for detail in error.errors())) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the content of a recipe file; InputError unless it is a readable mapping of sections."""
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe must be a readable YAML file, got {path}: {error}") from None
    except UNREADABLE as error:
        raise InputError(f"the recipe {path} must be YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        rule = f"the recipe {path} must hold sections such as `sparsify:`"
        raise InputError(f"{rule}, got {type(content).__name__}")
    if others := [key for key in content if not isinstance(key, str)]:
        raise InputError(f"the sections of the recipe {path} must have names, got {others[0]!r}")
    return content


def override(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return the recipe with `section.key=value` settings applied; values are parsed as YAML."""
    result: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
    for setting in settings:
        key, equals, value = setting.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or not section:
            example = "for example --set train.alpha=32"
            raise InputError(f"--set must be section.key=value, got {setting!r}; {example}")
        if name:
            result[section] = {**_section(result, section), ALIASES.get(name, name): _value(value)}
        else:
            result[section] = _value(value)
    return result


def _value(text: str) -> Any:
    try:
        return parse_yaml(text)
    except UNREADABLE:
        return text


def _section(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    content = values.get(section) or {}
    if not isinstance(content, dict):
        raise InputError(f"{section} must be a section of keys, got {content!r}")
    return full_names(content, section)


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Return a recipe file with `--set` settings applied; an empty section has all defaults."""
    values = override(read_yaml(path), settings)
    for name, field in Recipe.model_fields.items():
        if isinstance(field.default, StageConfig) and values.get(name, ...) is None:
            values[name] = {}
    return build(Recipe, "", values)


def stage_values(section: str, config: str | None, settings: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of one stage: flags override --set, which overrides the recipe file."""
    values = override(_for_verbs(read_yaml(config)) if config else {}, settings)
    if unknown := [key for key in values if key not in Recipe.model_fields]:
        raise InputError(*(_unknown(key, "", list(Recipe.model_fields)) for key in unknown))
    return {**_section(values, section), **{name: value for name, value in flags.items() if value is not None}}


def _for_verbs(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without the keys of `evaluate` that only a run reads."""
    section = content.get("evaluate")
    if not isinstance(section, dict):
        return dict(content)
    own = {key: value for key, value in section.items() if key not in ONLY_OF_RUNS}
    return {**content, "evaluate": own}


RULES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text",
    "bool": "must be true or false",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must be a mapping of keys to values",
    "model": "must be a mapping of keys to values",
}
"""What must hold, by the first word of the type of pydantic's error: of a wrong type or form."""


def rule_of(detail: ErrorDetails) -> str:
    """Return what must hold of a value, in words of ours instead of pydantic's."""
    kind, _, what = detail["type"].partition("_")
    limits = detail.get("ctx", {})
    if what in ("type", "attributes_type", "parsing", "parsing_size", "from_float") and kind in RULES:
        return RULES[kind]
    for end, word, key in (("too_short", "least", "min_length"), ("too_long", "most", "max_length")):
        if detail["type"].endswith(end):
            is_empty = word == "least" and limits[key] == 1
            unit = "characters" if kind == "string" else "items"
            return "must not be empty" if is_empty else f"must have at {word} {limits[key]} {unit}"
    if detail["type"] == "string_pattern_mismatch":
        return f"must match {limits['pattern']}"
    return detail["msg"].replace("Input should be", "must be")


def _explain(kind: type[StageConfig], section: str, detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(filter(None, [section, *location]))
    if detail["type"] == "extra_forbidden":
        owner = section_class(kind, location[:-1])
        return _unknown(location[-1], name.rpartition(".")[0], list(owner.model_fields))
    if detail["type"] == "missing":
        field = section_class(kind, location[:-1]).model_fields[location[-1]]
        words = " ".join(str(field.description).split())
        return f"{name} must be given (--{location[-1].replace('_', '-')}): {words}"
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
        if text.startswith("must "):  # about this field; other messages begin with a field's name
            return f"{name} {text}"
        return ".".join(filter(None, [section, *location, text]))
    choices = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    close = difflib.get_close_matches(str(detail["input"]), choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else _share_hint(detail)
    return f"{name} {rule_of(detail)}, got {detail['input']!r:.80}{hint}"


def _share_hint(detail: ErrorDetails) -> str:
    """Return a hint, such as `; for 50 % give 0.5`, if a percentage came where a share is wanted."""
    limits = detail.get("ctx", {})
    match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*(%?)\s*", str(detail["input"]))
    is_above = 1.0 in (limits.get("lt"), limits.get("le"))
    is_percent = is_above or (match is not None and match[2] and detail["type"] == "float_parsing")
    if match is None or not is_percent or float(match[1]) > 100:
        return ""
    return f"; for {match[1]} % give {float(match[1]) / 100:g}"


def section_class(kind: type[StageConfig], location: Sequence[str]) -> type[StageConfig]:
    """Return the class of a section of `kind`, such as TrainConfig for ['train'] of Recipe."""
    for part in location:
        if part not in kind.model_fields:  # a key of a mapping, such as the name of a baseline
            continue
        annotation: Any = kind.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        classes = (option for option in options if isinstance(option, type))
        kind = next(option for option in classes if issubclass(option, StageConfig))
    return kind


def _unknown(key: str, section: str, known: Sequence[str]) -> str:
    full = ".".join(filter(None, [section, key]))
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"unknown key {full!r}; did you mean {'.'.join(filter(None, [section, close[0]]))!r}?"
    return f"unknown key {full!r}; known are {', '.join(known)}"
