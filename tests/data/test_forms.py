"""The form of training rows, and a user's text in it: the same tokens that the training read before a completion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shears.config.fields import TemplateName
from shears.data.examples import prompt_of, to_example
from shears.data.forms import TrainedForm, form_of_rows, prompt_in, trained_form, turns_in
from shears.data.rules import rule_of, task_of_rules
from shears.data.tokens import render_turns, without_marks
from shears.records.artifacts import SEARCH_SPACE, SUB_ADAPTER, write_json
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def chats(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    start = [] if system is None else [{"role": "system", "content": system}]
    end = {"role": "assistant", "content": "done"}
    return [{"messages": [*start, {"role": "user", "content": text}, end]} for text in texts]


INSTRUCTIONS = [{"instruction": text, "output": "x"} for text in ("how many?", "how few?")]
SAME = [{"instruction": "as JSON", "input": text, "output": "{}"} for text in ("one", "two")]
NUMBERS = [{"instruction": text, "output": "3", "answer": "3"} for text in ("1 + 2", "2 + 1")]
PROMPTS = [{"prompt": f"{text}\nFrench:", "completion": "x"} for text in ("one", "two")]
CASES: Sequence[tuple[list[dict[str, Any]], TemplateName, str]] = [
    (INSTRUCTIONS, "question", "how few?"),
    (INSTRUCTIONS, "alpaca", "how few?"),
    (INSTRUCTIONS, "chat", "how few?"),
    (SAME, "question", "two"),
    (SAME, "alpaca", "two"),
    (SAME, "chat", "two"),
    (NUMBERS, "chat", "2 + 1"),
    (PROMPTS, "question", "two"),
    (PROMPTS, "question", "two\nFrench:"),
    (chats("hi", "ho", system="Be brief."), "question", "ho"),
    (chats("hi\nAs JSON.", "ho\nAs JSON."), "alpaca", "ho"),
]


@pytest.mark.parametrize(("rows", "template", "text"), CASES)
def test_the_last_rows_own_question_is_asked_as_the_training_read_it(
    rows: list[dict[str, Any]], template: TemplateName, text: str
) -> None:
    form = form_of_rows(rows, template)
    expected = prompt_of(to_example(rows[-1], template, TOKENIZER))
    if form.rows == "chat":
        asked = turns_in(form, [{"role": "user", "content": text}])
        assert turns_in(form, asked) == asked
        assert without_marks(render_turns(asked, TOKENIZER, answering=True)) == expected
    else:
        assert prompt_in(form, text) == expected
        assert prompt_in(form, expected) == expected


def test_a_form_is_that_of_most_rows_and_only_what_all_of_them_share() -> None:
    assert form_of_rows([*INSTRUCTIONS, *PROMPTS[:1]], "alpaca") == TrainedForm("instruction", "alpaca")
    assert form_of_rows([*SAME, *INSTRUCTIONS], "question").instruction is None
    others = [*chats("a", system="x"), *chats("b", system="y")]
    assert form_of_rows(others, "question") == TrainedForm("chat", "chat")
    assert form_of_rows(chats("a\nb", "c\nd"), "question").ending == ""
    assert form_of_rows(chats("a", "a"), "question").ending == ""  # a whole question is no ending


def test_the_task_of_rows_is_that_of_all_answers() -> None:
    def task(rows: list[dict[str, Any]]) -> str:
        return task_of_rules((row, rule_of(row)) for row in rows)

    assert [task(rows) for rows in (SAME, NUMBERS, [*SAME, *NUMBERS])] == ["json", "number", ""]
    equations = [
        {"instruction": "A", "output": "42+7-9 = 40", "answer": "40"},
        {"prompt": "B", "completion": "2*3=6", "answer": "6"},
    ]
    assert task(equations) == "equation"
    assert task([*equations, {"prompt": "C", "completion": "2*3 = 6", "answer": "7"}]) == "number"


def test_a_system_message_of_the_user_stays() -> None:
    turns = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "hi"}]
    assert turns_in(TrainedForm("chat", "chat", system="Theirs."), turns) == turns


def test_the_first_record_that_names_a_form_counts(tmp_path: Path) -> None:
    adapter, model, other = (tmp_path / name for name in ("adapter", "model", "other"))
    forms = [TrainedForm("chat", "chat", "Be brief.", None, "As JSON."), TrainedForm("prompt", "question")]
    for folder, name, form in ((adapter, SUB_ADAPTER, forms[0]), (model, SEARCH_SPACE, forms[1])):
        folder.mkdir()
        write_json(folder / name, {"config": {}, **form.as_record()})
    assert trained_form(adapter, model) == forms[0]
    assert trained_form(None, model) == forms[1]
    assert trained_form(other) is None
