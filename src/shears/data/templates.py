"""How a prompt is written, and how its question is recognised in other files and templates.

Instruction rows have the same templates in training and evaluation.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from shears.config.fields import CHAT, TemplateName
from shears.data.rules import rule_of, written
from shears.errors import InputError

# Decimal points, operators and signs distinguish questions (1.5 and 1 5, 3 + 4 and 3 - 4). Other
# punctuation does not, since word-tokenized files put spaces around it.
PIECES = re.compile(r"(?<![\w.])\.\d+|[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*|!=|[+\-*/=<>%^|±·\u2200-\u22ff]")
MARKS = {"Mn", "Mc"}  # categories of vowel signs and accents, which `re` takes for punctuation
QUESTION_COLUMNS = ("instruction", "prompt", "question", "original_text")


def _question(instruction: str, given: str) -> str:
    return f"Question: {instruction}\n{given}\nAnswer:" if given else f"Question: {instruction}\nAnswer:"


def _alpaca(instruction: str, given: str) -> str:
    """Return the prompt of Stanford Alpaca, which LLM-Adapters and the Shears paper use."""
    context = ", paired with an input that provides further context" if given else ""
    middle = f"### Input:\n{given}\n\n" if given else ""
    return (
        f"Below is an instruction that describes a task{context}. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"
    )


TEMPLATES: Mapping[str, Callable[[str, str], str]] = MappingProxyType({"question": _question, "alpaca": _alpaca})
DEFAULT_TEMPLATE: TemplateName = "question"
# A prompt that ends in a word needs a space before the completion.
_BEFORE_COMPLETION = MappingProxyType({"question": " ", "alpaca": "", CHAT: ""})
TO_REASON = "Please reason step by step, and end with the answer as a number."
"""Ends the user's turn of a row whose right answer is a number."""


def chat_turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the turns that ask an instruction row: the system's, if any, and the user's."""
    parts = (written(name, row.get(name) or "").strip() for name in ("instruction", "input"))
    asked = "\n\n".join(filter(None, parts))
    with suppress(InputError):  # a row without an answer
        asked += f"\n{TO_REASON}" if rule_of(row).form == "number" else ""
    system = written("system", row.get("system") or "").strip()
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": asked}]


def render_prompt(template: str, instruction: str, input: str = "") -> str:
    """Return the prompt of an instruction and its input; InputError for an unknown template."""
    if template not in TEMPLATES:
        raise InputError(f"template must be one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template](instruction.strip(), input.strip())


def render_completion(template: str, output: str) -> str:
    """Return the completion of a prompt of `render_prompt`: trimmed, after a space if needed."""
    return _BEFORE_COMPLETION[template] + output.strip()


PROMPTS = [
    re.compile(re.escape(render("\0", given).strip()).replace("\0", "(.*)").replace("\1", "(.*)"), re.DOTALL)
    for given in ("", "\1")
    for render in TEMPLATES.values()
]


def without_template(text: str) -> str:
    """Return a text without the words that a template puts around an instruction and its input."""
    text = text.strip().removesuffix(TO_REASON)
    match = next(filter(None, (pattern.fullmatch(text) for pattern in PROMPTS)), None)
    return text.strip() if match is None else " ".join(match.groups()).strip()


def question_of(row: Mapping[str, Any]) -> str:
    """Return the question of a row (instruction, prompt or last user message) and its choices."""
    messages = row.get("messages")
    if isinstance(messages, list):
        turns = (turn for turn in messages if isinstance(turn, dict))
        contents = [turn.get("content") for turn in turns if turn.get("role") == "user"]
        return str(contents[-1]) if contents else ""
    column = next((name for name in QUESTION_COLUMNS if row.get(name)), None)
    parts = [] if column is None else [without_template(str(row[column])), row.get("input") or ""]
    choices = row.get("choices")
    parts += choices if isinstance(choices, list) else []
    return " ".join(str(part) for part in parts if part != "").strip()


def question_id(question: str) -> str:
    """Return a hash of a question in lower case, without template and punctuation."""
    text = unicodedata.normalize("NFC", without_template(question)).lower()
    if not text.isascii():
        text = "".join(f"m{ord(char):x}m" if unicodedata.category(char) in MARKS else char for char in text)
    return hashlib.sha256(" ".join(PIECES.findall(text) or text.split()).encode()).hexdigest()[:16]
