"""How a training's rows asked: kept in its record, so that a user's text is asked the same way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from shears.config.fields import TemplateName
from shears.data.examples import RowForm, form_of_row
from shears.data.rows import Row
from shears.data.templates import TEMPLATES, chat_turns, render_prompt
from shears.data.tokens import turns_of
from shears.errors import reading
from shears.records.artifacts import FORM, find_record, read_object

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TrainedForm:
    """The form of the rows of a training, and what all of them had in common."""

    rows: Literal["chat", "instruction", "prompt"]
    """chat: turns in the model's chat template; instruction: in `template`; prompt: as they are."""
    template: TemplateName  # how a training asked instructions; `chat` if its rows are chats
    system: str | None = None  # the system message of every chat
    instruction: str | None = None  # the instruction of every row, to another `input` each
    ending: str = ""  # the last line of every question

    @property
    def words(self) -> str:
        names = {"chat": "chats", "prompt": "prompts without a template"}
        return names.get(self.rows, f"instructions in the template {self.template}")

    def ask(self, model: str) -> str:
        """Return the words of the command that asks a model, with options or not, in this form."""
        return f"chat {model}" if self.rows == "chat" else f'generate {model} --prompt "..."'

    def as_record(self) -> dict[str, Any]:
        """Return the keys of a training's record: the template, and the form without empty keys."""
        form = {key: value for key, value in asdict(self).items() if value and key != "template"}
        return {"template": self.template, FORM: form}


UNKNOWN = TrainedForm("prompt", "question")  # for words about a model that was not trained on rows


def form_of_record(record: Mapping[str, Any]) -> TrainedForm | None:
    return TrainedForm(template=record["template"], **record[FORM]) if FORM in record else None


def template_of_record(record: Mapping[str, Any]) -> Any:
    return record.get("template") or record.get("config", {}).get("template")


def _record_of(folder: str | Path | None) -> Mapping[str, Any]:
    path = None if folder is None else find_record(Path(folder))
    return {} if path is None else read_object(path)


def trained_form(*folders: str | Path | None) -> TrainedForm | None:
    """Return the first form that a record names: the adapter's, else its model's; or None."""
    for folder in folders:
        with reading(f"the record of {folder}"):
            if form := form_of_record(_record_of(folder)):
                return form
    return None


def trained_template(folder: str | Path | None) -> TemplateName | None:
    """Return the template of the training of an adapter or a model, else None."""
    with reading(f"the record of {folder}"):
        return cast("TemplateName | None", template_of_record(_record_of(folder)))


def form_of_rows(rows: Sequence[Row], template: TemplateName) -> TrainedForm:
    """Return the form of most training rows, and what all rows of this form have in common."""
    by_form: dict[RowForm, list[Row]] = {"chat": [], "instruction": [], "prompt": []}
    for row in rows:
        by_form[form_of_row(row, template)].append(row)
    form: RowForm = max(by_form, key=lambda name: len(by_form[name]))
    own = by_form[form]
    instruction = _only(row.get("instruction") if row.get("input") else None for row in own)
    if form != "chat":
        column = "prompt" if form == "prompt" else "input" if instruction else "instruction"
        texts = [str(row.get(column) or "").strip() for row in own]
        return TrainedForm(form, template, None, instruction, _common_ending(texts))
    asked = {"instruction": None} if instruction else {}
    chats = [turns_of(row["messages"]) if row.get("messages") else chat_turns({**row, **asked}) for row in own]
    system = _only(turns[0]["content"] if turns[0]["role"] == "system" else None for turns in chats)
    texts = [str(turn["content"]) for turns in chats for turn in turns if turn["role"] == "user"]
    return TrainedForm("chat", "chat", system, instruction, _common_ending(texts))


def _only(values: Iterable[object]) -> str | None:
    found = list(values)
    return found[0] if len(found) > 1 and len(set(map(str, found))) == 1 and isinstance(found[0], str) else None


def _common_ending(texts: Sequence[str]) -> str:
    endings = {text.rstrip().rpartition("\n")[::2] for text in texts}
    last = {line for _, line in endings}
    is_common = len(endings) > 1 and len(last) == 1 and all(before.strip() for before, _ in endings)
    return last.pop() if is_common else ""


def prompt_in(form: TrainedForm, text: str) -> str:
    """Return a text as a training's rows (no chats) asked; one in their template stays."""
    if form.rows == "prompt":
        return _ended(form, text)
    last_line = TEMPLATES[form.template]("", "").rstrip().rpartition("\n")[2]
    if text.rstrip().endswith(last_line):
        return text
    if form.instruction is not None:
        return render_prompt(form.template, form.instruction, _ended(form, text))
    return render_prompt(form.template, _ended(form, text))


def turns_in(form: TrainedForm, turns: Turns) -> list[dict[str, Any]]:
    """Return turns with the system message, instruction and ending of a training's chats."""
    found = [dict(turn) for turn in turns]
    for turn in found:
        content = turn.get("content")
        if turn["role"] == "user" and isinstance(content, str):
            if form.instruction is not None and not content.startswith(form.instruction):
                content = f"{form.instruction}\n\n{content}"
            turn["content"] = _ended(form, content)
    has_system = any(turn["role"] == "system" for turn in turns)
    return found if form.system is None or has_system else [{"role": "system", "content": form.system}, *found]


def _ended(form: TrainedForm, text: str) -> str:
    is_ended = not form.ending or text.rstrip().endswith(form.ending)
    return text if is_ended else f"{text.rstrip()}\n{form.ending}"
