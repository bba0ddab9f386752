"""YAML tasks of a folder that the user names: data, unless the user lets them run code.

lm-eval imports what `!function` and `class` name, loads unknown metrics as scripts from the hub, and renders templates
without a sandbox.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from shears.errors import InputError, first_line

ALLOWED = "SHEARS_TASK_CODE"  # in the environment: a recipe, which may be a stranger's, cannot set it
YAML_TAG = "tag:yaml.org,2002:"
PYTHON_TAG = f"{YAML_TAG}python"


def may_run_code() -> bool:
    """Tell whether the user lets tasks of any folder run code."""
    return os.environ.get(ALLOWED) == "1"


def refuse_code(folder: Path, *trusted: Path) -> None:
    """Raise InputError for a folder with a task that names code, itself or through what it includes.

    Files in the `trusted` folders may be included. InputError too for a file that is no YAML.
    """
    for path in sorted(folder.rglob("*.yaml")):
        _check(path.resolve(), [place.resolve() for place in trusted], set())


def _check(path: Path, trusted: list[Path], seen: set[Path]) -> None:
    if path in seen or any(path.is_relative_to(place) for place in trusted):
        return
    seen.add(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} must be a YAML task, got {first_line(error)}; correct it") from None
    for code in _code_in(node, ""):
        raise InputError(
            f"a task must be data alone, {path} names {code[:100]}, which would run code; set {ALLOWED}=1 if you trust "
            "its folder as you trust a program"
        )
    for name in _included(node):
        _check((path.parent / name).resolve(), trusted, seen)


def _code_in(node: yaml.Node | None, key: str) -> Iterator[str]:
    """Yield what a YAML node, the value of a key, names of code."""
    if node is None:
        return
    if node.tag.startswith(PYTHON_TAG) or not node.tag.startswith(YAML_TAG):
        yield f"{node.tag} {node.value if isinstance(node, yaml.ScalarNode) else ''}"
    if key == "class":
        yield "a class"
    if key == "hf_evaluate" and str(node.value).lower() not in ("false", "no", "off"):
        yield "a metric of the hub"
    if key == "metric" and isinstance(node, yaml.ScalarNode) and not _is_known_metric(node.value):
        yield f"the metric {node.value} of the hub, because lm-eval has none of that name"
    for name, child in _children(node, key):
        yield from _code_in(child, name)


def _children(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield "", name
            yield str(name.value), value
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield key, value


def _is_known_metric(name: str) -> bool:
    import lm_eval.api.metrics  # noqa: F401  # fills the registry
    from lm_eval.api.registry import metric_registry

    return name in metric_registry


def _included(node: yaml.Node | None) -> Iterator[str]:
    """Yield the files that a task includes."""
    for name, value in _children(node, "") if isinstance(node, yaml.MappingNode) else ():
        if name == "include":
            for entry in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield str(entry.value)


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Let lm-eval render templates in jinja2's sandbox, where they reach no attribute that leads to code."""
    from lm_eval import utils

    before = utils.env
    utils.env = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters.update(before.filters)
    try:
        yield
    finally:
        utils.env = before
