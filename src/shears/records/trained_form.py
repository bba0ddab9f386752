"""How the rows of a training asked: kept in the records, so that others ask its model in the same way."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from shears.config.fields import TemplateName
from shears.errors import InputError
from shears.records.artifacts import FORM, find_record, read_json

RowForm = Literal["chat", "instruction", "prompt"]


@dataclass(frozen=True)
class TrainedForm:
    """The form of the rows of a training, and what all of them had in common."""

    rows: RowForm
    """chat: turns in the model's chat template; instruction: in `template`; prompt: as they are."""
    template: TemplateName
    """How a training asked instructions; `chat` if its rows are chats."""
    system: str | None = None
    """The system message of every chat."""
    instruction: str | None = None
    """The instruction of every row, to another `input` each."""
    ending: str = ""
    """The last line of every question."""
    task: str = ""
    """The task of `evaluate` that reads the answers of all rows; empty if rows differ or have none."""

    @property
    def words(self) -> str:
        """The form in words, for messages."""
        names = {"chat": "chats", "prompt": "prompts without a template"}
        parts = [names.get(self.rows, f"instructions in the template {self.template}")]
        if self.system is not None:
            parts.append(f"the system message {self.system[:40]!r}")
        if self.instruction is not None:
            parts.append(f"the instruction {self.instruction[:40]!r}")
        if self.ending:
            parts.append(f"the last line {self.ending[:60]!r}")
        return ", ".join(parts)

    def ask(self, model: str) -> str:
        """Return the words of the command that asks a model, with or without options, in this form."""
        return f"chat {model}" if self.rows == "chat" else f'generate {model} --prompt "..."'

    def as_record(self) -> dict[str, Any]:
        """Return the keys of a training's record: the template, and the form without what is empty."""
        form = {key: value for key, value in asdict(self).items() if value and key != "template"}
        return {"template": self.template, FORM: form}


UNKNOWN = TrainedForm("prompt", "question")  # for the words about a model that was not trained on rows


def form_of_record(record: Mapping[str, Any]) -> TrainedForm | None:
    """Return the form that a record names; None for one of a model without, or of an earlier version."""
    form = record.get(FORM)
    template = template_of_record(record)
    if not isinstance(form, Mapping) or template is None or form.get("rows") not in get_args(RowForm):
        return None
    texts = {key: form[key] for key in ("system", "instruction", "ending", "task") if isinstance(form.get(key), str)}
    return TrainedForm(form["rows"], template, **texts)


def template_of_record(record: Mapping[str, Any]) -> Any:
    """Return the template of the training that a record names, else None."""
    config = record.get("config")
    template = record.get("template") or (config.get("template") if isinstance(config, Mapping) else None)
    return template if template in get_args(TemplateName) else None


def record_of(folder: str | Path | None) -> Mapping[str, Any]:
    """Return the record in a folder, empty without one; InputError for one that is no JSON object."""
    path = None if folder is None else find_record(Path(folder))
    content = {} if path is None else read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must be the record that shears wrote, it is {str(content)[:40]}; make it again")
    return content


def trained_form(*folders: str | Path | None) -> TrainedForm | None:
    """Return the form in the first record that names one: an adapter's, then its model's; else None."""
    return next((form for folder in folders if (form := form_of_record(record_of(folder)))), None)


def trained_template(folder: str | Path | None) -> TemplateName | None:
    """Return the template of the training of an adapter or a model, else None."""
    template: TemplateName | None = template_of_record(record_of(folder))
    return template
