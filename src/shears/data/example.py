"""An example: text segments, some of which carry the loss. Imports no library, because records are read with it."""

from dataclasses import dataclass, field

IGNORED = -100  # label of a token that does not count


@dataclass(frozen=True)
class Segment:
    """A piece of text, and whether its tokens carry the loss."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Tokenized:
    """Token ids and, for each, its label: the id itself, or IGNORED if it carries no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Example:
    """A prompt and its completion; for choices, also every completion to choose from, the answer among them."""

    segments: tuple[Segment, ...]
    answer: str | None = None
    choices: tuple[str, ...] = ()
    question: str = field(default="", compare=False)
    """The question without a template, which identifies the example in other files and under other prompts."""
    is_chat: bool = field(default=False, repr=False)
    """The text comes from a chat template, which writes the start of sequence itself if the model needs one."""


def segments_before(example: Example) -> tuple[Segment, ...]:
    """Return the segments before the last trained one."""
    last = max(index for index, segment in enumerate(example.segments) if segment.trained)
    return example.segments[:last]


def prompt_of(example: Example) -> str:
    """Return all text before the last trained segment."""
    return "".join(segment.text for segment in segments_before(example))


def completion_of(example: Example) -> str:
    """Return the text of the last trained segment."""
    return next(segment.text for segment in reversed(example.segments) if segment.trained)
