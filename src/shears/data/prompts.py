"""The prompt template: one text for training and for evaluation, and what stands between prompt and completion."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from shears.errors import InputError


def _question(instruction: str, given: str) -> str:
    return f"Question: {instruction}\n{given}\nAnswer:" if given else f"Question: {instruction}\nAnswer:"


def _alpaca(instruction: str, given: str) -> str:
    """The preamble of Stanford Alpaca, as LLM-Adapters and the Shears paper use it."""
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
    """Return the prompt of an instruction (and its input, where there is one); InputError for an unknown template."""
    if template not in TEMPLATES:
        raise InputError(f"template must be one of {', '.join(TEMPLATES)}, got {template!r}")
    return TEMPLATES[template](instruction.strip(), input.strip())


def render_completion(template: str, output: str) -> str:
    """Return the completion as it follows the prompt of `render_prompt`: trimmed, after one space or a line break."""
    return _BEFORE_COMPLETION[template] + output.strip()


def without_template(text: str) -> str:
    """Return a text without the words that any template puts around an instruction and its input; others as they are.

    Case and spacing of these words do not matter; a text may have the start or the end of a template alone.
    """
    return _END.sub("", _START.sub("", _MIDDLE.sub(" ", text))).strip()


def _around() -> tuple[set[str], set[str], set[str]]:
    """Return what the templates have before an instruction, between it and its input, and behind them."""
    starts, middles, ends = set[str](), set[str](), set[str]()
    for render in TEMPLATES.values():
        start, end = render("\0", "").split("\0")
        start_with_input, middle, end_with_input = re.split("[\0\1]", render("\0", "\1"))
        starts |= {start, start_with_input}
        middles.add(middle)
        ends |= {end, end_with_input}
    return starts, middles, ends


def _any_of(texts: set[str]) -> str:
    """Return a regular expression of any of the texts that has words, the longest first, whatever the spaces in it."""
    words = sorted((re.findall(r"\w+|[^\w\s]+", text) for text in texts), key=len, reverse=True)
    return "|".join(r"(?<!\w)" + r"\s*".join(map(re.escape, each)) for each in words if each)


_START, _MIDDLE, _END = (
    re.compile(pattern.format(_any_of(texts)), re.IGNORECASE)
    for pattern, texts in zip((r"\A(?:\s*(?:{}))+", "(?:{})", r"(?:(?:{})\s*)+\Z"), _around(), strict=True)
)
