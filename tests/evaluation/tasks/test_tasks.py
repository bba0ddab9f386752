"""Tasks: the figures follow from the records, and errors name rows that do not suit a task."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from shears.config import EvaluateConfig
from shears.data.examples import to_example
from shears.errors import InputError
from shears.evaluation.generate import Decoder
from shears.evaluation.records import WrittenText
from shears.evaluation.scoring.score import Choice
from shears.evaluation.statistics import wilson_interval
from shears.evaluation.tasks import registry as tasks
from shears.evaluation.tasks.registry import evaluate_examples, evaluate_task
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _config(task: str, data: str = "unused", **changes: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"task": task, "data": data, "max_new_tokens": 4, "batch_size": 2, **changes})


def _answering(monkeypatch: pytest.MonkeyPatch, texts: list[str], cut: frozenset[int] = frozenset()) -> None:
    answers = [WrittenText(text, number in cut) for number, text in enumerate(texts)]
    monkeypatch.setattr(Decoder, "answers", lambda *_: answers)


ROWS = [{"prompt": f"{n}+1?", "completion": f" {n}+1 = {n + 1}", "answer": n + 1.0} for n in range(4)]


def test_equations_are_right_by_their_left_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _answering(monkeypatch, [" 0+1 = 5", " 2-0 = 2\nmore", " 3", " nonsense"])
    result = evaluate_task(tiny_model(), TOKENIZER, _config("equation", _file(tmp_path, ROWS)))
    assert [record["correct"] for record in result.records] == [True, True, True, False]
    assert [record["prediction"] for record in result.records] == [1.0, 2.0, 3.0, None]
    assert (result.metric, result.value, result.n) == ("accuracy", 0.75, 4)
    assert result.ci95 == wilson_interval(3, 4)


def test_numbers_are_right_by_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, ["so 1.", "2 then 7", "about 1,000", "4.0004"])
    examples = [to_example({**row, "answer": None}, "question", TOKENIZER) for row in ROWS]  # answer: the completion's
    result = evaluate_examples(tiny_model(), TOKENIZER, examples, _config("number"))
    assert [record["answer"] for record in result.records] == [1.0, 2.0, 3.0, 4.0]
    assert [record["correct"] for record in result.records] == [True, False, False, True]


def test_json_is_right_whole_and_by_fields_in_chats_and_completions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": '{"a": 1, "b": "x"}'}]
    rows: list[dict[str, Any]] = [
        {"messages": chat},
        {"prompt": "b", "completion": '{"a": 2}'},
        {"instruction": "c", "answer": {"c": [1]}},
    ]
    _answering(monkeypatch, ['{"b": "x", "a": 1}', '```json\n{"a": 3}\n```', '{"c": [1'], cut=frozenset({2}))
    result = evaluate_task(tiny_model(), TOKENIZER, _config("json", _file(tmp_path, rows)))
    assert [record["correct"] for record in result.records] == [True, False, False]
    assert [record["cut"] for record in result.records] == [False, False, True]
    assert [record["prediction"] for record in result.records] == [{"b": "x", "a": 1}, {"a": 3}, None]
    assert (result.value, result.details["accuracy_of_fields"], result.details["cut"]) == (1 / 3, 2 / 4, 1.0)


def test_exact_text_is_right_without_the_spaces_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": " ja"}, {"instruction": "b", "output": "nein"}]
    _answering(monkeypatch, ["ja\n", "Nein"])
    result = evaluate_task(tiny_model(), TOKENIZER, _config("exact", _file(tmp_path, rows)))
    assert [record["correct"] for record in result.records] == [True, False]
    with pytest.raises(InputError, match="row 1: a row's answer must be a JSON object or list, got 'ja'"):
        evaluate_task(tiny_model(), TOKENIZER, _config("json", _file(tmp_path, rows)))


def test_choices_are_right_by_log_likelihood(tmp_path: Path) -> None:
    rows = [{"instruction": f"Is {n} even?\n\nAnswer format: true/false", "answer": "true"} for n in range(5)]
    result = evaluate_task(tiny_model(), TOKENIZER, _config("choices", _file(tmp_path, rows), limit=4))
    assert result.n == len(result.records) == 4
    assert result.value == sum(record["correct"] for record in result.records) / 4
    assert result.details.keys() == {"accuracy_per_token", "accuracy_per_token_low", "accuracy_per_token_high"}
    for record in result.records:
        true, false = record["log_likelihoods"]
        assert record["prediction"] == ("the correct answer is " + ("true" if true >= false else "false"))


def test_a_nan_log_likelihood_is_an_error_and_an_infinite_one_is_null(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _config("choices", _file(tmp_path, [{"prompt": "2?", "choices": [" 2", " 3"], "answer": 0}]))
    monkeypatch.setattr(tasks, "likeliest_choices", lambda *_: [Choice(0, 0, (-1.0, -math.inf))])
    assert evaluate_task(tiny_model(), TOKENIZER, config).records[0]["log_likelihoods"] == [-1.0, None]
    monkeypatch.undo()
    with pytest.raises(InputError, match="must give every choice a log-likelihood, got nan in row 1"):
        evaluate_task(_damaged(), TOKENIZER, config)


@pytest.mark.parametrize("task", ["number", "equation", "gsm8k"])
def test_texts_of_a_model_without_numbers_are_refused_not_scored(task: str) -> None:
    row = {"instruction": "1+1?", "output": " 1+1 = 2", "answer": "2"}
    with pytest.raises(InputError, match="must give finite logits, got nan for a token; it may be damaged"):
        evaluate_examples(_damaged(), TOKENIZER, [to_example(row, "question", TOKENIZER)], _config(task))


def _damaged() -> PreTrainedModel:
    model = tiny_model("llama_untied")
    model.get_parameter("lm_head.weight").data[:] = math.nan
    return model


@pytest.mark.parametrize("task", ["choices", "number", "equation"])
def test_a_whole_evaluation_runs_and_is_json(task: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1?", "choices": [" 1+1 = 2", " 3"], "answer": 0},
        {"prompt": "2?", "choices": [" 2", " 3"], "answer": 1},
    ]
    result = evaluate_task(tiny_model(), TOKENIZER, _config(task, _file(tmp_path, rows)))
    data = json.loads(json.dumps(result.as_data(), allow_nan=False))
    assert data.keys() >= {"task", "metric", "value", "n", "ci95", "records"}
    assert [record.keys() >= {"index", "prompt", "prediction", "answer", "correct"} for record in data["records"]] == [
        True
    ] * 2


def test_perplexity_is_of_a_text_or_of_rows_of_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text to read " * 5)
    config = _config("perplexity", str(tmp_path / "text.txt"), sequence_length=20, limit=3)
    result = evaluate_task(tiny_model(), TOKENIZER, config)
    assert (result.metric, result.n, len(result.records)) == ("perplexity", 57, 3)
    assert result.records[0].keys() == {"window", "nll", "tokens"}
    rows = _file(tmp_path, [{"text": "some text to read " * 2}] * 3)
    assert evaluate_task(tiny_model(), TOKENIZER, _config("perplexity", rows, sequence_length=20)).n == 5 * 19


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("choices", {"prompt": "a", "completion": "b"}, "row 1 has none; add the column choices"),
        ("choices", {"prompt": "a", "choices": ["b"], "answer": "c"}, "answer among them"),
        ("number", {"prompt": "a", "completion": "b"}, "row 1 has None"),
        ("equation", {"prompt": "a", "answer": "many"}, "row 1 has 'many'"),
        ("number", {"prompt": "a", "answer": "1/2"}, "a number as its answer, in decimals, row 1 has '1/2'"),
    ],
)
def test_a_row_that_does_not_suit_the_task_is_named(
    task: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_task(tiny_model(), TOKENIZER, _config(task, _file(tmp_path, [row])))


def test_perplexity_is_no_task_on_examples() -> None:
    with pytest.raises(InputError, match="choices, number, equation, .*got 'perplexity'"):
        evaluate_examples(tiny_model(), TOKENIZER, [], _config("perplexity"))
