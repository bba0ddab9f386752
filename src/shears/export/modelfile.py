"""A Modelfile, from which Ollama makes a model of a GGUF file.

Ollama renders chats by templates of its own language. The pieces around each turn are read off a
conversation that the model's chat template renders, and count only where they render others alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from shears.data.forms import prompt_in
from shears.records.trained_form import TrainedForm

Chat = Sequence[Mapping[str, str]]
TRIALS: Sequence[Sequence[str]] = (
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user", "assistant", "user"],
)
"""Roles of conversations."""


@dataclass(frozen=True)
class Turns:
    """The text before and after a turn of each role, and `default`, which stands where no system turn does."""

    default: str
    before_system: str
    after_system: str
    before_user: str
    before_assistant: str
    after_assistant: str

    def render(self, chat: Chat) -> str:
        """Return a conversation whose next turn is the assistant's, as Ollama renders `go_template`."""
        has_system = any(turn["role"] == "system" for turn in chat)
        turns = (self._around(turn["role"], turn["content"]) for turn in chat)
        return ("" if has_system else self.default) + "".join(turns) + self.before_assistant

    def _around(self, role: str, content: str) -> str:
        before = {"system": self.before_system, "user": self.before_user, "assistant": self.before_assistant}
        after = {
            "system": self.after_system,
            "assistant": self.after_assistant,
        }  # the assistant's turn follows a user's
        return before[role] + content + after.get(role, "")

    def go_template(self) -> str:
        """Return the template in Ollama's language."""
        roles = (
            f'{{{{ {condition} eq .Role "{role}" }}}}' + self._around(role, "{{ .Content }}")
            for condition, role in (("if", "system"), ("else if", "user"), ("else if", "assistant"))
        )
        default = f"{{{{ if not .System }}}}{self.default}{{{{ end }}}}" if self.default else ""
        turns = f"{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}"
        return f"{default}{turns}{self.before_assistant}"


def modelfile(
    file: str, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str], form: TrainedForm | None = None
) -> str:
    """Return the Modelfile for a GGUF file in the same folder; texts of `ends` end an answer.

    It asks in the form of a training, greedily. It has no template where the model has none, or one
    that a turn's role alone does not render; Ollama then looks for a template of its own.
    """
    lines = [f"FROM ./{file}"]
    turns = read_turns(tokenizer)
    texts = {"TEMPLATE": None if turns is None else turns.go_template(), "SYSTEM": None}
    if form is not None:
        lines.append("PARAMETER temperature 0")
        texts["SYSTEM"] = form.system
        if form.rows != "chat":
            texts["TEMPLATE"] = prompt_in(form, "{{ .Prompt }}")
    quotes = '"' * 3
    lines += [f"{name} {quotes}{text}{quotes}" for name, text in texts.items() if text and quotes not in text]
    lines += [f'PARAMETER stop "{end}"' for end in ends if '"' not in end and "\n" not in end]
    return "\n".join(lines) + "\n"


def read_turns(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Return the turns of a tokenizer's chat template; None where it has no such form."""
    if not tokenizer.chat_template:
        return None
    marked = _chat(["system", "user", "assistant", "user"])
    try:
        first = _between(_rendered(tokenizer, marked), marked)
        alone = _between(_rendered(tokenizer, marked[1:2]), marked[1:2])
        if first is None or alone is None:
            return None
        turns = _turns(first, alone[0])
        texts = [_rendered(tokenizer, chat) for chat in map(_chat, TRIALS)]
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError):  # a template may refuse a conversation
        return None
    is_plain = not any("{{" in piece or '"""' in piece for piece in astuple(turns))
    return turns if is_plain and texts == [turns.render(_chat(roles)) for roles in TRIALS] else None


def _chat(roles: Sequence[str]) -> Chat:
    return [{"role": role, "content": f"word-{place}-of-{role}"} for place, role in enumerate(roles)]


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    turns: Any = [dict(turn) for turn in chat]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _between(text: str, chat: Chat) -> list[str] | None:
    """Return the pieces of a text around the contents of a conversation; None where one is missing."""
    pieces = []
    for turn in chat:
        piece, found, text = text.partition(turn["content"])
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _turns(pieces: Sequence[str], alone: str) -> Turns:
    """Return the turns; `pieces` lie around system, user, assistant and user, `alone` before a user's first turn."""
    before_system, system_user, user_assistant, assistant_user, _ = pieces
    before_user = _common_end(system_user, assistant_user, alone)
    return Turns(
        default=alone.removesuffix(before_user),
        before_system=before_system,
        after_system=system_user.removesuffix(before_user),
        before_user=before_user,
        before_assistant=user_assistant,
        after_assistant=assistant_user.removesuffix(before_user),
    )


def _common_end(*texts: str) -> str:
    letters = zip(*(reversed(text) for text in texts), strict=False)
    return "".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, letters))[::-1]
