"""Tasks: the figures follow from the records, and errors name rows that do not suit a task."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from shears.config import EvaluateConfig
from shears.errors import InputError
from shears.evaluation import tasks
from shears.evaluation.decode import Decoder
from shears.evaluation.evaluated import WrittenText
from shears.evaluation.statistics import wilson_interval
from shears.evaluation.tasks import Subject, evaluate_task
from tests.tiny import tiny_model, tiny_tokenizer

SUBJECT = Subject(tiny_model(), tiny_tokenizer())


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _config(task: str, data: str, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"task": task, "data": data, "max_new_tokens": 4, "batch_size": 2, **changes})


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": '{"a": 1, "b": "x"}'}]
SUMS = [{"prompt": f"{n}+1?", "completion": f" {n}+1 = {n + 1}", "answer": n + 1.0} for n in range(4)]
TASKS: list[tuple[str, list[dict[str, Any]], list[str], list[bool], list[Any]]] = [
    ("equation", SUMS, [" 0+1 = 5", " 2-0 = 2\nmore", " 3", " no"], [True, True, True, False], [1.0, 2.0, 3.0, None]),
    (
        "number", [{**row, "answer": None} for row in SUMS], ["so 1.", "2 then 7", "about 1,000", "4.0004"],
        [True, False, False, True], [1.0, 7.0, 1000.0, 4.0004],
    ),
    (
        "json", [{"messages": CHAT}, {"prompt": "b", "completion": '{"a": 2}'}, {"instruction": "c", "answer": [1]}],
        ['{"b": "x", "a": 1}', '```json\n{"a": 3}\n```', '{"c": (1'], [True, False, False],
        [{"b": "x", "a": 1}, {"a": 3}, None],
    ),
    (
        "exact", [{"prompt": "a", "completion": " ja"}, {"instruction": "b", "output": "nein"}], ["ja\n", "Nein"],
        [True, False], ["ja", "Nein"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", TASKS, ids=[case[0] for case in TASKS])
def test_texts_are_judged_by_the_rule_of_the_task(case: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task, rows, texts, right, read = case
    monkeypatch.setattr(Decoder, "answers", lambda *_: [WrittenText(text, text == texts[-1]) for text in texts])
    result = evaluate_task(SUBJECT, _config(task, _file(tmp_path, rows)))
    assert [record["correct"] for record in result.records] == right
    assert [record["prediction"] for record in result.records] == read
    assert (result.metric, result.value, result.n) == ("accuracy", sum(right) / len(right), len(right))
    assert result.ci95 == wilson_interval(sum(right), len(right))
    assert result.details == {"cut": 1.0}
    assert json.loads(json.dumps(result.as_data(), allow_nan=False))["records"] == result.records


def test_choices_are_right_by_log_likelihood(tmp_path: Path) -> None:
    rows = [{"instruction": f"Is {n} even?\n\nAnswer format: true/false", "answer": "true"} for n in range(5)]
    result = evaluate_task(SUBJECT, _config("choices", _file(tmp_path, rows), limit=4))
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
    monkeypatch.setattr(tasks, "scored_choices", lambda *_: [([-1.0, -math.inf], [-1.0, -math.inf])])
    assert evaluate_task(SUBJECT, config).records[0]["log_likelihoods"] == [-1.0, None]
    monkeypatch.undo()
    with pytest.raises(InputError, match="must give every choice a log-likelihood, got nan in row 1"):
        evaluate_task(Subject(_damaged(), SUBJECT.tokenizer), config)


def _damaged() -> PreTrainedModel:
    model = tiny_model("llama_untied")
    model.get_parameter("lm_head.weight").data[:] = math.nan
    return model


def test_perplexity_is_of_a_text_or_of_rows_of_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text to read " * 5)
    config = _config("perplexity", str(tmp_path / "text.txt"), sequence_length=20, limit=3)
    result = evaluate_task(SUBJECT, config)
    assert (result.metric, result.n, len(result.records)) == ("perplexity", 57, 3)
    assert result.records[0].keys() == {"window", "nll", "tokens"}
    rows = _file(tmp_path, [{"text": "some text to read " * 2}] * 3)
    assert evaluate_task(SUBJECT, _config("perplexity", rows, sequence_length=20)).n == 5 * 19


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("choices", {"prompt": "a", "completion": "b"}, r"row 1 has \(\); add the column choices"),
        ("choices", {"prompt": "a", "choices": ["b"], "answer": "c"}, "an answer among them"),
        ("number", {"prompt": "a", "completion": "b"}, "row 1 of the data: .* must be a number, in decimals, got 'b'"),
        ("equation", {"prompt": "a", "answer": "many"}, "got 'many'"),
        ("number", {"prompt": "a", "answer": "1/2"}, "a number, in decimals, got '1/2'"),
        ("json", {"prompt": "a", "completion": "ja"}, "must be a JSON object or list, got 'ja'"),
        ("exact", {"prompt": "a"}, "a row must have an answer"),
    ],
)
def test_a_row_that_does_not_suit_the_task_is_named(
    task: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_task(SUBJECT, _config(task, _file(tmp_path, [row])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "choices", "num_beams": 4},
            "num_beams above 1 needs a task that generates answers, got 4 beams with task choices",
        ),
        ({"task": "mawps", "backend": "native"}, "backend native needs a task that generates answers, and num_beams 1"),
        ({"task": "equation", "template": "chat"}, "template must be question or alpaca for task equation"),
        ({"task": "harness"}, "must be given together, got task harness"),
        ({"task": "number", "harness": "piqa"}, "must be given together, got task number"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig.model_validate({"data": "x", **changes})


@pytest.mark.parametrize("task", ["number", "equation", "gsm8k"])
def test_texts_of_a_model_without_numbers_are_refused_not_scored(task: str, tmp_path: Path) -> None:
    data = _file(tmp_path, [{"instruction": "1+1?", "output": " 1+1 = 2", "answer": "2"}])
    with pytest.raises(InputError, match="must give finite logits, got nan for a token; it may be damaged"):
        evaluate_task(Subject(_damaged(), SUBJECT.tokenizer), _config(task, data))
