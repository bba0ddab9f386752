"""The help of every verb: its examples parse, and the flags that most need stand first."""

import shlex
from typing import Any

import pytest
import typer

from shears.cli import application
from shears.cli.options import FIRST, MORE
from tests.conftest import Call

GROUP: Any = typer.main.get_command(application())
VERBS: dict[str, Any] = GROUP.commands


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples_that_parse(verb: str) -> None:
    text = (VERBS[verb].help or "").replace("\b\n", "").replace("\\\n", " ")
    examples = [line.partition(" < ")[0].strip() for line in text.splitlines() if line.strip().startswith("shears ")]
    assert examples
    for example in examples:
        words = shlex.split(example)[1:]
        if words[0] == verb:
            with VERBS[verb].make_context(verb, words[1:]) as ctx:
                assert ctx.args == []


@pytest.mark.parametrize("verb", VERBS)
def test_at_most_ten_fields_of_the_configuration_come_first(verb: str) -> None:
    options = [each for each in VERBS[verb].params if each.param_type_name == "option" and each.name in FIRST]
    assert sum(each.rich_help_panel != MORE for each in options) <= 10


def test_h_is_help_and_bare_shears_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["-h"], ["--help"], []):
        code, output, _ = call(*words)
        assert "sparsify" in output
        assert code == (0 if words else 2)
        assert max(map(len, output.splitlines())) <= 80


def test_help_shows_few_flags_and_help_all_every_one(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, few, _ = call("train", "--help")
    assert code == 0
    _, every, _ = call("train", "--help-all")
    for flag in ("--data", "--lora-r", "--lora-alpha", "--target-modules", "--help-all"):
        assert flag in few, flag
        assert flag in every, flag
    for flag in ("--gradient-checkpointing", "--warmup-steps"):
        assert flag not in few, flag
        assert flag in every, flag


def test_names_of_peft_and_transformers_are_the_same_options() -> None:
    words = ["base", "out", "--data", "rows.jsonl", "--lora-r", "8", "--lora-alpha", "16", "--target-modules", "q_proj",
             "--gradient-checkpointing"]  # fmt: skip
    with VERBS["train"].make_context("train", words) as context:
        given = {name: value for name, value in context.params.items() if value is not None}
    assert given["ranks"] == "8"
    assert given["alpha"] == "16"
    assert given["groups"] == "q_proj"
    assert given["recompute"] is True
