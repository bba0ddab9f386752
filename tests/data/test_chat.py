"""What chats may hold: texts, parts of text, tools that are called; nothing else is turned into text in silence."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from shears.data.examples import completion_of, to_example, tokenize, tokenize_all
from shears.errors import InputError
from tests.tiny import END, tiny_tokenizer

ASKED: dict[str, Any] = {"role": "user", "content": "u"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
WITH_TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    + END
    + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _trained(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    tokenizer = tokenizer or tiny_tokenizer()
    tokens = tokenize(to_example({"messages": messages}, "question", tokenizer), tokenizer)
    return str(tokenizer.decode([label for label in tokens.labels if label != -100]))


def test_parts_of_text_are_the_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    plain = _trained([ASKED, {"role": "assistant", "content": "a\nb"}])
    assert _trained([ASKED, {"role": "assistant", "content": parts}]) == plain == f"a\nb{END}"


def test_tools_that_are_called_are_trained_where_the_template_renders_them() -> None:
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    with pytest.raises(InputError, match="must render the tools that are called"):
        _trained(messages)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = WITH_TOOLS
    assert _trained(messages, tokenizer) == 'add({"a": 1})' + END
    assert _trained([messages[0], {"role": "assistant", "tool_calls": [CALL]}], tokenizer) == 'add({"a": 1})' + END


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant"}, r"text as content, turn 2 \(assistant\) has none"),
        ({"role": "assistant", "content": None}, r"turn 2 \(assistant\) has none"),
        ({"role": "assistant", "content": 7}, "has 7"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, r"turn 2 \(user\) has \[\{'type'"),
        ({"role": "user", "content": []}, r"has \[\]"),
        ({"role": "user", "content": ["text"]}, "has "),
    ],
)
def test_other_content_is_refused(turn: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_example({"messages": [ASKED, turn, {"role": "assistant", "content": "a"}]}, "question", tiny_tokenizer())


def test_a_template_that_wants_parts_does_not_lose_them_in_silence() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}" + END
        + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )  # fmt: skip
    with pytest.raises(InputError, match="must take text as content, this one takes parts"):
        _trained([ASKED, {"role": "assistant", "content": [{"type": "text", "text": "the answer"}]}], tokenizer)


def test_a_turn_that_says_nothing_is_not_learnt() -> None:
    tokenizer = tiny_tokenizer()
    messages = [ASKED, {"role": "assistant", "content": " "}, ASKED, {"role": "assistant", "content": "a"}]
    assert _trained(messages) == f"a{END}"
    silent = to_example({"messages": messages[:2]}, "question", tokenizer)
    assert completion_of(silent) == ""
    with pytest.raises(InputError, match="got 1 without one"):
        tokenize_all([silent], tokenizer, 64)
