"""The form of the rows of a training, and a text of the user's in this form."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shears.config.fields import CHAT, TemplateName
from shears.data.chat import turns_of
from shears.data.example import Row, messages_of
from shears.data.prompts import TEMPLATES, chat_turns, render_prompt
from shears.data.rules import rule_of, task_of_rules
from shears.errors import InputError
from shears.records.trained_form import RowForm, TrainedForm

Turns = Sequence[Mapping[str, Any]]


def form_of_rows(rows: Sequence[Row], template: TemplateName) -> TrainedForm:
    """Return the form of training rows: that of most, and what all rows of this form have in common.

    Instructions in the template `chat` are chats.
    """
    by_form: dict[RowForm, list[Row]] = {"chat": [], "instruction": [], "prompt": []}
    for row in rows:
        by_form[_row_form(row, template)].append(row)
    form: RowForm = max(by_form, key=lambda name: len(by_form[name]))
    own = by_form[form]
    task = _task(rows)
    if form == "chat" and task == "equation":  # which is asked for by its prompt, never in a chat
        task = "number"
    instruction = _only(row.get("instruction") if row.get("input") else None for row in own)
    if form != "chat":
        asked = [_text(row, "prompt" if form == "prompt" else "input" if instruction else "instruction") for row in own]
        return TrainedForm(form, template, None, instruction, _common_ending(asked), task)
    chats = [_turns(row, instruction) for row in own]
    system = _only(next((turn["content"] for turn in turns[:1] if turn["role"] == "system"), None) for turns in chats)
    asked = [str(turn["content"]) for turns in chats for turn in turns if turn["role"] == "user"]
    return TrainedForm("chat", "chat", system, instruction, _common_ending(asked), task)


def _row_form(row: Row, template: TemplateName) -> RowForm:
    if messages_of(row) is not None:
        return "chat"
    if row.get("prompt") is not None or row.get("instruction") is None:
        return "prompt"
    return "chat" if template == CHAT else "instruction"


def _turns(row: Row, instruction: str | None) -> Turns:
    """Return the turns of a row; those of an instruction row without the instruction that all rows have."""
    if messages := messages_of(row):
        return turns_of(messages)
    return chat_turns({**row, "instruction": None} if instruction else row)


def _task(rows: Sequence[Row]) -> str:
    """Return the task that reads the answers of all rows; empty if rows differ or have no answer."""
    try:
        return task_of_rules((row, rule_of(row)) for row in rows)
    except InputError:
        return ""


def _text(row: Row, column: str) -> str:
    return str(row.get(column) or "").strip()


def _only(values: Iterable[object]) -> str | None:
    """Return the text that several values all are, else None."""
    found = list(values)
    return found[0] if len(found) > 1 and len(set(map(str, found))) == 1 and isinstance(found[0], str) else None


def _common_ending(texts: Sequence[str]) -> str:
    """Return the last line that different texts of several lines have in common; empty if they have none."""
    endings = {text.rstrip().rpartition("\n")[::2] for text in texts}
    last = {line for _, line in endings}
    is_common = len(endings) > 1 and len(last) == 1 and all(before.strip() for before, _ in endings)
    return last.pop() if is_common else ""


def prompt_in(form: TrainedForm, text: str) -> str:
    """Return a text as the rows of a training asked, which were no chats; one in their template stays."""
    if form.rows == "prompt":
        return _ended(form, text)
    last_line = TEMPLATES[form.template]("", "").rstrip().rpartition("\n")[2]
    if text.rstrip().endswith(last_line):
        return text
    if form.instruction is not None:
        return render_prompt(form.template, form.instruction, _ended(form, text))
    return render_prompt(form.template, _ended(form, text))


def turns_in(form: TrainedForm, turns: Turns) -> list[dict[str, Any]]:
    """Return a conversation as the chats of a training were: with their system message, and all users' turns alike."""
    has_system = any(turn["role"] == "system" for turn in turns)
    start = [] if form.system is None or has_system else [{"role": "system", "content": form.system}]
    return [*start, *({**turn, **_asked(form, turn)} for turn in turns)]


def _asked(form: TrainedForm, turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    if turn["role"] != "user" or not isinstance(content, str):
        return {}
    if form.instruction is not None and not content.startswith(form.instruction):
        content = f"{form.instruction}\n\n{content}"
    return {"content": _ended(form, content)}


def _ended(form: TrainedForm, text: str) -> str:
    is_ended = not form.ending or text.rstrip().endswith(form.ending)
    return text if is_ended else f"{text.rstrip()}\n{form.ending}"
