"""How a prompt is written: the templates of instruction rows, the same in training and in evaluation.

Rows of prompt and completion are used as they are; chats are rendered by the tokenizer's template (chat.py).
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from shears.errors import InputError


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
DEFAULT_TEMPLATE = "question"
# A prompt that ends in a word needs a space before the completion; one that ends in a line break does not.
_BEFORE_COMPLETION = MappingProxyType({"question": " ", "alpaca": ""})


def render_prompt(template: str, instruction: str, input: str = "") -> str:
    """Return the prompt of an instruction and its input, if any; InputError for an unknown template."""
    if template not in TEMPLATES:
        raise InputError(f"template must be one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template](instruction.strip(), input.strip())


def render_completion(template: str, output: str) -> str:
    """Return the completion that follows a prompt of `render_prompt`: trimmed, after a space if the prompt needs it."""
    return _BEFORE_COMPLETION[template] + output.strip()


def without_template(text: str) -> str:
    """Return a text without the words that a template puts around an instruction and its input.

    Case and spacing of these words do not matter; a text may have only the start or only the end of a template, or none
    of it.
    """
    return _END.sub("", _START.sub("", _MIDDLE.sub(" ", text))).strip()


def _around() -> tuple[set[str], set[str], set[str]]:
    """Return the templates' texts before an instruction, between it and its input, and behind them."""
    starts = set[str]()
    middles = set[str]()
    ends = set[str]()
    for render in TEMPLATES.values():
        start, end = render("\0", "").split("\0")
        start_with_input, middle, end_with_input = re.split("[\0\1]", render("\0", "\1"))
        starts |= {start, start_with_input}
        middles.add(middle)
        ends |= {end, end_with_input}
    return starts, middles, ends


def _any_of(texts: set[str]) -> str:
    """Return a regular expression of any of the texts with words, the longest first, with any spaces in it."""
    words = sorted((re.findall(r"\w+|[^\w\s]+", text) for text in texts), key=len, reverse=True)
    return "|".join(r"(?<!\w)" + r"\s*".join(map(re.escape, each)) for each in words if each)


_START, _MIDDLE, _END = (
    re.compile(pattern.format(_any_of(texts)), re.IGNORECASE)
    for pattern, texts in zip((r"\A(?:\s*(?:{}))+", "(?:{})", r"(?:(?:{})\s*)+\Z"), _around(), strict=True)
)
