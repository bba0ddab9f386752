"""What a row's right answer is, and by which rule a text's answer is read and compared with it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shears.data import answer_reading as reading
from shears.errors import InputError

RuleForm = Literal["number", "equation", "choice", "json", "exact"]
LETTERS = tuple("ABCDE")
# The forms of LLM-Adapters' sets: the choices stand at the end of the instruction.
ANSWER_FORMAT = re.compile(r"Answer format:\s*(\S+(?:/\S+)+)\s*$")
LETTERED = re.compile(r"Answer Choices:\s*\(A\)")
CHOICE_COMPLETION = "the correct answer is {}"
COMPLETIONS = ("completion", "output")  # the columns of answers, where no column `answer` is


@dataclass(frozen=True)
class AnswerRule:
    """A row's right answer, and how the answer of a text is read and compared with it.

    number: the last number of the text, within 0.001. equation: the value of its first line.
    choice: the only choice that the text is or names, or its letter. json: the object or list in
    the text, equal by value. exact: the whole text without the spaces around it.
    """

    form: RuleForm
    answer: Any
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """Return the answer that a text gives; None if it gives none of the rule's form."""
        if self.form == "choice":
            return reading.named_choice(text, self.choices)
        if self.form == "number":
            return reading.extract_number(text)
        if self.form == "equation":
            return reading.evaluate_equation(text)
        return reading.json_in(text) if self.form == "json" else text.strip()

    def is_right(self, text: str) -> bool:
        given = self.read(text)
        if self.form in ("number", "equation"):
            return reading.numbers_equal(given, self.answer)
        return reading.same_json(given, self.answer) if self.form == "json" else bool(given == self.answer)


def rule_of(row: Mapping[str, Any], form: RuleForm | None = None) -> AnswerRule:
    """Return a row's rule, by `form` if given; ValueError if it cannot read the row's answer.

    Without a form, it follows from the answer: a choice if the row has choices, a number if the
    answer is one (or ends in "#### 72", as in GSM8K), JSON if it is an object or a list, else exact
    text. The answer is the column `answer`, else the completion or the assistant's last turn.
    """
    if form in (None, "choice"):
        names, chosen = _choices(row)
        if not names and LETTERED.search(str(row.get("instruction", ""))):
            names, chosen = list(LETTERS), _chosen(LETTERS, row.get("answer"))
        if names or form == "choice":
            if chosen not in names:
                raise InputError(f"a row's answer must be one of its choices, got {row.get('answer')!r}")
            return AnswerRule("choice", chosen, tuple(names))
    return rule_of_text(reference_of(row), form)


def rule_of_text(reference: str, form: RuleForm | None = None) -> AnswerRule:
    """Return the rule for a right answer's text, as `rule_of` does for a row without choices."""
    text = reference.strip()
    if form is None:
        form = "number" if reading.stated_number(text) is not None else "exact"
        form = "json" if reading.parsed_json(text) is not None else form
    answer: Any = text
    if form in ("number", "equation"):
        value = reading.stated_number(text) if form == "number" else reading.evaluate_equation(text)
        answer = reading.right_number(text) if value is None else value
    elif form == "json":
        answer = reading.parsed_json(text)
    if answer is None:
        wanted = "a JSON object or list" if form == "json" else "a number, in decimals"
        raise InputError(f"a row's answer must be {wanted}, got {text[:60]!r}")
    return AnswerRule(form, answer)


def task_of_rules(pairs: Iterable[tuple[Mapping[str, Any], AnswerRule]]) -> str:
    """Return the task of `evaluate` that reads the answers of all rows; empty if they differ.

    It is equation where all rows teach to write one: its value counts, not the result behind it.
    """
    forms = set()
    for row, rule in pairs:
        text = next((as_text(row[name]) for name in COMPLETIONS if row.get(name) is not None), "")
        is_equation = "=" in text and reading.numbers_equal(reading.evaluate_equation(text), rule.answer)
        forms.add("equation" if rule.form == "number" and is_equation else rule.form)
    if forms == {"number", "equation"}:
        return "number"
    [form] = forms if len(forms) == 1 else {""}
    return "choices" if form == "choice" else form


def reference_of(row: Mapping[str, Any]) -> str:
    """Return the answer, completion, output or last assistant turn as text; InputError if none."""
    if row.get("answer") is not None:
        text = as_text(row["answer"])
    elif messages := row.get("messages"):
        turns = [turn.get("content") for turn in messages if turn.get("role") == "assistant"]
        text = as_text(turns[-1] or "") if turns else ""
    else:
        text = next((as_text(row[name]) for name in COMPLETIONS if row.get(name) is not None), "")
    if not text.strip():
        rule = "a row must have an answer (column answer, completion, output, or an assistant turn)"
        came = f"got none in {', '.join(map(str, row))}"
        raise InputError(f"{rule}, {came}; name yours, as in --columns user=ticket,assistant=json")
    return text


def choices_of(row: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Return the texts to choose from, if any, and the answer; None if it is not among them."""
    names, chosen = _choices(row)
    if row.get("choices") in (None, "", []) and names:
        return list(map(CHOICE_COMPLETION.format, names)), None if chosen is None else CHOICE_COMPLETION.format(chosen)
    return names, chosen


def _choices(row: Mapping[str, Any]) -> tuple[list[str], str | None]:
    answer = row.get("answer")
    given = row.get("choices")
    if given not in (None, "", []):
        if not isinstance(given, list):
            raise InputError(f"choices must be a list, got {str(given)[:40]!r}; put it into [ ]")
        choices = [written("a choice", choice) for choice in given]
        return choices, _chosen(choices, answer)
    match = ANSWER_FORMAT.search(str(row.get("instruction", "")))
    if match is None:
        return [], None if answer is None else as_text(answer)
    names = match[1].split("/")
    return names, _chosen(names, answer)


def _chosen(choices: Sequence[str], answer: object) -> str | None:
    """Return the choice that an answer is, else that of its letter or its index from 0, if any."""
    whole = isinstance(answer, float) and answer.is_integer()  # 1 in a table's column with gaps
    text = f"{answer:.0f}" if whole else as_text(answer).strip()
    if isinstance(answer, str | bool):
        same = [choice for choice in choices if choice.strip() == text]
        if same:
            return as_text(answer) if as_text(answer) in same else same[0]
    index = len(choices)
    if isinstance(answer, str) and len(text) == 1 and text.isascii() and text.isalpha():
        index = ord(text.upper()) - ord("A")
    elif text.isdecimal() and len(text) < 10:  # Python refuses to read thousands of digits
        index = int(text)
    return choices[index] if 0 <= index < len(choices) else None


def written(what: str, value: object) -> str:
    """Return a text as it is, a number as Python writes it, and true and false as JSON does."""
    if not isinstance(value, str | int | float):
        raise InputError(f"{what} must be text, got {type(value).__name__}; put chats into the column messages")
    return as_text(value)


def as_text(value: object) -> str:
    """Return booleans, objects and lists as JSON writes them, other values as Python does."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | dict | list) else str(value)
