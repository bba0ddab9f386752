"""Chats may hold texts and tool calls; anything else is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from shears.data.calibration import calibration_batches
from shears.data.examples import completion_of, prompt_of, prompts_of, to_example, tokenize, tokenize_all
from shears.data.templates import question_id
from shears.errors import InputError
from tests.tiny import END, starting_tokenizer, tiny_tokenizer

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


def test_tools_that_are_called_are_trained_where_the_template_renders_them() -> None:
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    with pytest.raises(InputError, match="need a chat template that supports tools"):
        _trained(messages)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = WITH_TOOLS
    assert _trained(messages, tokenizer) == 'add({"a": 1})' + END
    assert _trained([messages[0], {"role": "assistant", "tool_calls": [CALL]}], tokenizer) == 'add({"a": 1})' + END


def test_an_empty_turn_is_not_trained() -> None:
    tokenizer = tiny_tokenizer()
    messages = [ASKED, {"role": "assistant", "content": " "}, ASKED, {"role": "assistant", "content": "a"}]
    assert _trained(messages) == f"a{END}"
    silent = to_example({"messages": messages[:2]}, "question", tokenizer)
    assert completion_of(silent) == ""
    with pytest.raises(InputError, match="got 0 longer than .* 1 without a completion"):
        tokenize_all([silent], tokenizer, 64)


TALK = [ASKED, {"role": "assistant", "content": "Hello"}, ASKED, {"role": "assistant", "content": "a"}]


def test_a_chat_starts_as_its_template_says_in_training_evaluation_and_calibration(tmp_path: Path) -> None:
    tokenizer = starting_tokenizer()
    for template in (str(tiny_tokenizer().chat_template), "<s>" + str(tiny_tokenizer().chat_template)):
        tokenizer.chat_template = template
        example = to_example({"messages": TALK}, "question", tokenizer)
        whole = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
        expected = tokenizer.apply_chat_template(TALK[:-1], add_generation_prompt=True, return_dict=False)
        assert tokenize(example, tokenizer).input_ids == whole
        assert prompts_of([example], tokenizer) == [expected]
        (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
        calibration = calibration_batches(str(tmp_path / "chats.jsonl"), tokenizer, 1, len(whole), 1, 0)
        assert calibration.batches[0].tolist() == [whole]
    assert prompts_of([to_example({"prompt": "a"}, "question", tokenizer)], tokenizer)[0][0] == tokenizer.bos_token_id


SUM: dict[str, Any] = {"instruction": "Add.", "input": "1 and 2", "output": "1 + 2 = 3\n#### 3"}
REASONED = "Add.\n\n1 and 2\nPlease reason step by step, and end with the answer as a number."


def test_an_instruction_row_in_the_template_chat_is_trained_as_the_chat_that_it_stands_for() -> None:
    tokenizer = tiny_tokenizer()
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": REASONED}]
    chat = {"messages": [*turns, {"role": "assistant", "content": SUM["output"]}]}
    asked = to_example({**SUM, "system": "s"}, "chat", tokenizer)
    assert tokenize(asked, tokenizer) == tokenize(to_example(chat, "question", tokenizer), tokenizer)


def test_only_a_number_is_reasoned_about_and_its_sentence_is_no_part_of_the_question() -> None:
    label = {"instruction": "Is it?\n\nAnswer format: true/false", "output": "", "answer": "true"}
    example = to_example(label, "chat", tiny_tokenizer())
    assert "step by step" not in prompt_of(example)
    assert example.choices == ("the correct answer is true", "the correct answer is false")
    assert example.answer == example.choices[0]
    assert question_id(REASONED) == question_id("Add. 1 and 2")
