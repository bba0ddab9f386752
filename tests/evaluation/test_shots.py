"""Solved examples stand before every question, none of them is tested, and an answer ends where they end."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears.config import EvaluateConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.evaluation.generate import Decoder
from shears.evaluation.records import WrittenText
from shears.evaluation.run import evaluate, template_of
from shears.evaluation.tasks.registry import evaluate_task
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TRAINING = [
    {"question": "How much is 1 plus 1?", "answer": "It is 1 + 1.\n\nSo 2.\n#### 2"},
    {"question": "How much is 2 plus 2?", "answer": "#### 4"},
    {"question": "How much is 3 plus 3?", "answer": "#### 6"},
]
TEST = [{"instruction": "How much is 2 plus 2 ?", "output": "", "answer": "4.0"},
        {"instruction": "How much is 7 plus 2?", "output": "", "answer": "9.0"}]  # fmt: skip
SHOWN = (
    "Question: How much is 1 plus 1?\nAnswer: It is 1 + 1.\nSo 2.\n#### 2\n\n"
    "Question: How much is 3 plus 3?\nAnswer: #### 6\n\n"
)


def _files(folder: Path, **changes: Any) -> dict[str, Any]:
    for name, rows in (("train", TRAINING), ("test", TEST)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"task": "gsm8k", "data": str(folder / "test.jsonl"), "shots": f"{folder / 'train.jsonl'}:2"}
    return {**given, "template": "question", "num_beams": 1, "max_new_tokens": 3, "device": "cpu", **changes}


def test_the_first_solved_rows_that_are_not_tested_stand_before_every_question(tmp_path: Path) -> None:
    result = evaluate_task(tiny_model(), tiny_tokenizer(), EvaluateConfig(**_files(tmp_path)))
    prompts = [record["prompt"] for record in result.records]
    assert prompts == [f"{SHOWN}Question: {row['instruction']}\nAnswer:" for row in TEST]


def test_an_answer_ends_at_a_blank_line_and_is_then_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [WrittenText(" 2 + 2.\n#### 4\n\nQuestion: 7?\nAnswer: 8", True), WrittenText(" 7 + 2 = ", True)]
    monkeypatch.setattr(Decoder, "answers", lambda *_: texts)
    result = evaluate_task(tiny_model(), tiny_tokenizer(), EvaluateConfig(**_files(tmp_path)))
    assert [(record["prediction"], record["correct"], record["cut"]) for record in result.records] == [
        (4.0, True, False), (2.0, False, True),
    ]  # fmt: skip
    assert result.details["cut"] == 1


def test_a_model_with_a_chat_template_is_asked_few_shot_in_plain_text(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    given = _files(tmp_path, task="number", template=None, shots=f"{tmp_path / 'solved.jsonl'}:1")
    (tmp_path / "solved.jsonl").write_text('{"instruction": "1 plus 1?", "output": "2"}\n')
    evaluate(str(folder), tmp_path / "out.json", **given)
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["config"]["template"], len(record["shots_sha256"])) == ("question", 64)
    config = build(EvaluateConfig, "evaluate", {**given, "shots": None})
    assert template_of(config, has_chat=True) == "chat"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": "{test}"}, "shots must be other rows than the test data"),
        ({"shots": "{train}"}, "shots need 4 rows whose questions are not tested, .* has 2"),
        ({"shots": "{train}:0"}, "N above 0"),
        ({"template": "chat"}, "got template chat; drop shots"),
        ({"task": "perplexity", "template": None}, "got task perplexity; drop shots"),
    ],
)
def test_shots_that_cannot_be_shown_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = _files(tmp_path)
    names = {name: tmp_path / f"{name}.jsonl" for name in ("train", "test")}
    shots = changes.get("shots", given["shots"]).format(**names)
    options = {**given, **changes, "shots": shots}
    if options["task"] == "perplexity":
        options = {name: options[name] for name in ("task", "data", "shots")}
    with pytest.raises(InputError, match=message):
        evaluate_task(tiny_model(), tiny_tokenizer(), build(EvaluateConfig, "evaluate", options))
