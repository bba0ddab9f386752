"""Examples beyond a model's context: an error before any computation if positions end, else a warning."""

import logging
from typing import Any

import pytest
import torch

from shears.config import EvaluateConfig
from shears.data.examples import Example, to_example
from shears.errors import InputError
from shears.evaluation.generate import Decoder
from shears.evaluation.scoring.score import Forest, refuse_beyond
from shears.evaluation.tasks.registry import evaluate_examples
from tests.tiny import LONGEST, tiny_model, tiny_tokenizer

TABLES = ["gpt2", "opt", "gptj", "codegen", "gpt_bigcode", "gpt_neo", "mpt"]
ENDLESS = ["llama", "bloom", "falcon_alibi", "mamba", "rwkv"]


def _examples(length: int) -> list[Example]:
    rows = [{"prompt": "a" * count, "choices": ["1", "23"], "answer": 1} for count in (3, length)]
    return [to_example(row, "question", tiny_tokenizer()) for row in rows]


def _config(task: str, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"task": task, "data": "unused", "max_new_tokens": 4, **changes})


@pytest.mark.parametrize("name", [*TABLES, *ENDLESS])
def test_positions_end_where_the_model_fails_beyond_them(name: str) -> None:
    model = tiny_model(name)
    row = torch.zeros(1, LONGEST + 1, dtype=torch.int64)
    if name in TABLES:
        with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
            model(input_ids=row)
        with pytest.raises(InputError, match="the model's 256 positions, number 2 comes to 257 tokens; shorten it"):
            refuse_beyond(model, [LONGEST, LONGEST + 1], "shorten it")
    else:
        model(input_ids=row)
        refuse_beyond(model, [LONGEST + 1], "shorten it")
    refuse_beyond(model, [LONGEST], "shorten it")
    model(input_ids=row[:, 1:])


@pytest.mark.parametrize(("task", "longest"), [("choices", LONGEST - 1), ("number", LONGEST - 3)])
def test_an_example_that_does_not_fit_is_named(
    task: str, longest: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last token needs no position: `23` takes one, four new tokens take three."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    assert evaluate_examples(model, tokenizer, _examples(longest), _config(task)).n == 2
    assert "positions" not in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(Forest, "batch", lambda *_: pytest.fail("something was computed"))
        patch.setattr(Decoder, "continued", lambda *_: pytest.fail("something was computed"))
        with pytest.raises(InputError, match="256 positions, number 2 comes to 257 tokens"):
            evaluate_examples(model, tokenizer, _examples(longest + 1), _config(task))
    with caplog.at_level(logging.WARNING):
        evaluate_examples(tiny_model("llama"), tokenizer, _examples(longest + 1), _config(task))
    assert "1 of 2 examples have more tokens (up to 257) than the 256 positions" in caplog.text
