"""The help: panels at 80 columns, required options first, examples that can be copied."""

import re
import shlex
from typing import Any

import pytest
import typer
from pydantic import Field

from shears import config
from shears.cli import application
from shears.cli.help import examples
from shears.cli.options import with_stage_options
from shears.cli.panels import METAVARS, PANELS
from shears.config.fields import StageConfig
from tests.conftest import Call

GROUP: Any = typer.main.get_command(application())
VERBS: dict[str, Any] = GROUP.commands
KINDS = {
    "TEXT", "INTEGER", "COUNT", "NUMBER", "FILE", "FOLDER", "MODEL", "NAME", "SIZE", "URL",
    "KEY=VALUE", "A,B,...", "A=X,B=Y,...",
}  # fmt: skip


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The help of every verb, as a pipe gets it."""
    group = GROUP.make_context("shears", [], resilient_parsing=True)
    return {
        name: verb.make_context(name, [], parent=group, resilient_parsing=True).get_help()
        for name, verb in VERBS.items()
    }


def test_every_help_fits_80_columns_and_holds_no_escape(pages: dict[str, str]) -> None:
    for verb, page in pages.items():
        assert max(map(len, page.splitlines())) <= 80, verb
        assert "\x1b" not in page
        assert "default: True" not in page
        assert "default: False" not in page


def test_the_help_of_sparsify_names_every_option_with_its_choices(pages: dict[str, str]) -> None:
    words = " ".join(pages["sparsify"].split())
    for name in config.SparsifyConfig.model_fields:
        assert re.search(rf" --{name.replace('_', '-')}[ ,]", words), name
    assert "--method wanda|magnitude|sparsegpt|admm" in words
    assert "--allocation uniform|sensitivity" in words
    assert "--reconstruct none|linear|block" in words
    assert "--sparsity-of A=X,B=Y,..." in words
    assert "such as down_proj=0.4; the other linears make up for it" in words


def test_required_options_come_first(pages: dict[str, str]) -> None:
    for verb, command in VERBS.items():
        panels = [line.split()[1] for line in pages[verb].splitlines() if line.startswith("─ ")]
        assert panels[-1] == "Options"
        required = [option for option in command.params if option.rich_help_panel == "Required" or option.required]
        if any(option.param_type_name == "option" for option in required):
            assert panels[:2] == ["Arguments", "Required"]


def test_every_example_of_the_help_can_be_copied_and_parsed(pages: dict[str, str]) -> None:
    """Lines as printed, a trailing backslash joining them: no wrapping, no characters of a box."""
    for verb, page in pages.items():
        lines = page.replace("\\\n", " ").splitlines()
        commands = [line.strip() for line in lines if line.startswith("  shears ")]
        assert commands, verb
        assert [shlex.split(line) for line in commands] == [shlex.split(line) for line in examples(VERBS[verb].help)]
        called = [shlex.split(line.split(" < ")[0])[1:] for line in commands]
        assert called[0][0] == verb
        for name, *words in called:
            VERBS[name].make_context(name, words)  # raises for an unknown option or a missing argument


def test_options_have_one_style_of_kinds() -> None:
    for verb, command in VERBS.items():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag and not option.hidden:
                kind = option.metavar
                assert kind in KINDS or "|" in kind or kind == "OWNER/NAME", f"{verb} {option.opts[0]} {kind}"


def test_an_option_without_a_panel_is_shown_too() -> None:
    class Newer(StageConfig):
        unheard_of: int = Field(1)
        """A field that no panel names."""

    app = typer.Typer(rich_markup_mode=None)
    cls: Any = type(VERBS["train"])

    @app.command(cls=cls)
    @with_stage_options("newer", Newer)
    def newer(values: dict[str, Any]) -> None:
        """Do something."""

    page = typer.main.get_command(app).make_context("newer", [], resilient_parsing=True).get_help()
    assert page.index("─ Options") < page.index("--unheard-of INTEGER")


def test_a_field_stands_in_one_panel() -> None:
    names = [name for fields in PANELS.values() for name in fields]
    assert len(names) == len(set(names))
    assert set(config.TrainConfig.model_fields) - {"data"} <= set(names)
    known = {parameter.name for command in VERBS.values() for parameter in command.params}
    known |= {*config.RunEvaluateConfig.model_fields}
    assert {*names, *METAVARS} <= known  # a removed option leaves its panel too


def test_h_is_help_and_bare_shears_too(call: Call) -> None:
    assert call("train", "-h") == call("train", "--help")
    assert call() == call("-h") == call("--help")
    code, page, errors = call()
    assert (code, errors) == (0, "")
    assert all(f"\n  {verb} " in page for verb in VERBS)


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shears.cli.help.console", type("Terminal", (), {"is_terminal": True, "no_color": False,
                        "width": 80, "options": type("Options", (), {"ascii_only": True})}))  # fmt: skip
    page = VERBS["env"].make_context("env", [], resilient_parsing=True).get_help()
    assert "\x1b[36m--threads INTEGER" in page
    assert "─" not in page


def test_shells_complete_verbs_and_options(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SHEARS_COMPLETE", "complete_bash")
    for words, expected in {"shears spars": "sparsify", "shears train --learni": "--learning-rate"}.items():
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        code, output, _ = call()
        assert (code, output.split()) == (0, [expected])


def test_completion_is_offered_once(pages: dict[str, str]) -> None:
    assert {option for parameter in GROUP.params for option in parameter.opts} >= {"--install-completion"}
    assert not any("completion for" in page for page in pages.values())
