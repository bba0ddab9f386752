"""How the rows of a training asked: kept in the records, so that others ask its model in the same way."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from shears.config.fields import TemplateName
from shears.errors import reading
from shears.records.artifacts import FORM, find_record, read_object


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
        """Return the words of the command that asks a model, with or without options, in this form."""
        return f"chat {model}" if self.rows == "chat" else f'generate {model} --prompt "..."'

    def as_record(self) -> dict[str, Any]:
        """Return the keys of a training's record: the template, and the form without what is empty."""
        form = {key: value for key, value in asdict(self).items() if value and key != "template"}
        return {"template": self.template, FORM: form}


UNKNOWN = TrainedForm("prompt", "question")  # for the words about a model that was not trained on rows


def form_of_record(record: Mapping[str, Any]) -> TrainedForm | None:
    return TrainedForm(template=record["template"], **record[FORM]) if FORM in record else None


def template_of_record(record: Mapping[str, Any]) -> Any:
    return record.get("template") or record.get("config", {}).get("template")


def _record_of(folder: str | Path | None) -> Mapping[str, Any]:
    path = None if folder is None else find_record(Path(folder))
    return {} if path is None else read_object(path)


def trained_form(*folders: str | Path | None) -> TrainedForm | None:
    """Return the form in the first record that names one: an adapter's, then its model's; or None."""
    for folder in folders:
        with reading(f"the record of {folder}"):
            if form := form_of_record(_record_of(folder)):
                return form
    return None


def trained_template(folder: str | Path | None) -> TemplateName | None:
    """Return the template of the training of an adapter or a model, else None."""
    with reading(f"the record of {folder}"):
        return cast("TemplateName | None", template_of_record(_record_of(folder)))
