"""The paper's tasks: the name sets prompt, length, beams and reading; both readings are in the result."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears.config import EvaluateConfig
from shears.config.evaluate import ANSWER_FORMS
from shears.data.prompts import render_prompt
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import training_data
from shears.evaluation.generate import Decoder
from shears.evaluation.records import WrittenText
from shears.evaluation.run import evaluate
from shears.evaluation.scoring.score import build_forest, log_likelihoods
from shears.evaluation.statistics import wilson_interval
from shears.evaluation.tasks.registry import evaluate_task
from shears.records.artifacts import SUB_ADAPTER, write_json
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LABELS = {
    "boolq": "true/false", "piqa": "solution1/solution2", "siqa": "answer1/answer2/answer3", "obqa": "answer1/answer2",
    "hellaswag": "ending1/ending2/ending3/ending4", "winogrande": "option1/option2", "arc-easy": "answer1/answer2",
    "arc-challenge": "answer1/answer2/answer3/answer4",
}  # fmt: skip


def _row(task: str, number: int = 0) -> dict[str, str]:
    if task not in LABELS:
        return {"instruction": f"What is {number}?", "answer": "B" if task == "aqua" else f"{number}.0"}
    text = f"Which is {number}?\n\nAnswer format: {LABELS[task]}"
    return {"instruction": text, "input": "", "output": "", "answer": LABELS[task].split("/")[1]}


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


def _config(**keys: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"precision": "fp32", **keys})


@pytest.mark.parametrize("task", ANSWER_FORMS)
def test_the_name_sets_protocol_length_and_beams_and_flags_override_them(task: str) -> None:
    plain, tokens = _config(task=task, data="x"), 32 if task in LABELS else 256
    assert (plain.protocol, plain.longest_answer, plain.beams) == ("generate", tokens, 4)
    chat = plain.asked_in("chat")
    assert (chat.max_new_tokens, chat.num_beams) == (32 if task in LABELS else 512, 1)
    other = _config(task=task, data="x", num_beams=1, max_new_tokens=7).asked_in("alpaca")
    assert (other.protocol, other.max_new_tokens, other.num_beams) == ("generate", 7, 1)
    assert _config(**plain.model_dump()) == plain


@pytest.mark.parametrize("task", ANSWER_FORMS)
def test_a_task_by_name_runs_whole(task: str, tmp_path: Path) -> None:
    data = _file(tmp_path, [_row(task, number) for number in range(3)])
    result = evaluate_task(
        tiny_model(), TOKENIZER, _config(task=task, data=data, template="alpaca", max_new_tokens=3, num_beams=2)
    )
    assert (result.task, result.n) == (task, 3)
    assert result.records[1]["prompt"] == render_prompt("alpaca", _row(task, 1)["instruction"])
    assert result.details.keys() == {"accuracy_strict", "accuracy_strict_low", "accuracy_strict_high", "cut"}
    assert len({record["id"] for record in result.records}) == 3
    json.dumps(result.as_data(), allow_nan=False)


@pytest.mark.parametrize("task", [*LABELS, "aqua"])
def test_choices_are_a_second_protocol_of_the_same_task(task: str, tmp_path: Path) -> None:
    data = _file(tmp_path, [_row(task, number) for number in range(3)])
    result = evaluate_task(tiny_model(), TOKENIZER, _config(task=task, data=data, protocol="choices"))
    generated = evaluate_task(tiny_model(), TOKENIZER, _config(task=task, data=data, max_new_tokens=1, num_beams=1))
    assert "accuracy_per_token" in result.details
    assert [record["id"] for record in result.records] == [record["id"] for record in generated.records]
    assert len(result.records[0]["log_likelihoods"]) == (5 if task == "aqua" else LABELS[task].count("/") + 1)
    if task == "aqua":
        assert result.records[0]["answer"] == "The answer is (B)."


def test_a_letter_inside_a_word_counts_officially_and_not_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Because the answer is (C).", "The answer is (B).", "BCD", "A man. The answer is (B)."]
    monkeypatch.setattr(Decoder, "answers", lambda *_: [WrittenText(text, False) for text in texts])
    data = _file(tmp_path, [_row("aqua", number) for number in range(4)])
    result = evaluate_task(tiny_model(), TOKENIZER, _config(task="aqua", data=data))
    assert [record["correct"] for record in result.records] == [True, True, True, False]
    assert [record["correct_strict"] for record in result.records] == [False, True, False, True]
    assert (result.value, result.details["accuracy_strict"]) == (0.75, 0.5)
    low, high = result.details["accuracy_strict_low"], result.details["accuracy_strict_high"]
    assert (low, high) == wilson_interval(2, 4)


@pytest.mark.parametrize(("template", "letter"), [("alpaca", "A"), ("chat", "C")])
def test_a_letter_in_chat_form_is_the_one_that_is_stated(
    template: str, letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "answers", lambda *_: [WrittenText("A train goes 4 km. The answer is (C).", False)])
    config = _config(task="aqua", data=_file(tmp_path, [_row("aqua")]), template=template)
    assert [each["prediction"] for each in evaluate_task(tiny_model(), TOKENIZER, config).records] == [letter]


@pytest.mark.parametrize(
    ("task", "keys", "message"),
    [
        ("gsm8k", {"answer": "many"}, "gsm8k must have a number as its answer, row 1 has 'many'"),
        ("gsm8k", {"answer": "9" * 400}, "gsm8k must have a number as its answer, row 1 has '999"),
        ("aqua", {"answer": "F"}, "aqua must have a letter A to E as its answer, row 1 has 'F'"),
        ("boolq", {"answer": "maybe"}, "boolq must have true or false as its answer, row 1"),
        ("gsm8k", {"protocol": "choices"}, "protocol choices needs a task with choices, and gsm8k asks for a number"),
    ],
)
def test_a_row_or_option_that_does_not_fit_is_an_error(
    task: str, keys: dict[str, str], message: str, tmp_path: Path
) -> None:
    row = {**_row(task), **{name: value for name, value in keys.items() if name == "answer"}}
    config = {name: value for name, value in keys.items() if name != "answer"}
    with pytest.raises(InputError, match=message):
        evaluate_task(tiny_model(), TOKENIZER, _config(task=task, data=_file(tmp_path, [row]), **config))


def test_a_protocol_is_for_the_papers_tasks_alone() -> None:
    with pytest.raises(ValueError, match="protocol needs a task of the paper"):
        _config(task="number", data="x", protocol="generate")


def _trained(folder: Path, base: Path, rows: list[dict[str, Any]]) -> Path:
    """Copy a model with a record of an adapter that was trained on these rows and merged into it."""
    made = save_tiny(folder)
    write_json(made / SUB_ADAPTER, {"data": _file(folder, rows), "template": "question"})
    return made


def test_test_questions_in_the_training_data_are_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [_row("mawps", number) for number in range(5)]
    prompts = [
        f"Question: {rows[0]['instruction'].replace('?', ' ?')}\nAnswer:",
        render_prompt("alpaca", rows[1]["instruction"]),
    ]
    trained = [{"prompt": prompt, "completion": "x"} for prompt in prompts]
    model = _trained(tmp_path / "model", tmp_path, trained)
    result = evaluate(str(model), task="mawps", data=_file(tmp_path, rows), max_new_tokens=2, num_beams=1)
    assert [source["data"] for source in training_data(model)] == [str(model / "rows.json")]
    assert [record["seen_in_training"] for record in result.records] == [True, True, False, False, False]
    assert result.details["seen_in_training"] == 2
    assert result.details["accuracy_unseen"] == sum(record["correct"] for record in result.records[2:]) / 3
    assert "2 of 5 test questions stand in the training data" in caplog.text
    assert result.records[0]["prompt"].startswith("Question:")  # its own template, not the paper's


def test_training_data_that_are_gone_or_hold_no_test_questions_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [_row("mawps", number) for number in range(2)]
    model = _trained(tmp_path / "model", tmp_path, [{"prompt": "other", "completion": "x"}])
    options: dict[str, Any] = {"task": "mawps", "data": _file(tmp_path, rows), "max_new_tokens": 2, "num_beams": 1}
    before = evaluate(str(model), **options)
    assert "seen_in_training" not in before.details
    (model / "rows.json").unlink()
    with caplog.at_level("INFO"):
        assert evaluate(str(model), **options) == before
    assert "could not be searched for questions of other data" in caplog.text


def test_a_changed_file_is_not_taken_for_the_training_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A relative path in a record may lead to another folder's file."""
    rows = [_row("mawps", number) for number in range(2)]
    model = _trained(tmp_path / "model", tmp_path, [{"prompt": row["instruction"], "completion": "x"} for row in rows])
    path = str(model / "rows.json")
    options: dict[str, Any] = {"task": "mawps", "data": _file(tmp_path, rows), "max_new_tokens": 2, "num_beams": 1}
    for known, seen in ((source_fingerprint(path), 2), ("0" * 64, None)):
        write_json(model / SUB_ADAPTER, {"template": "question", "data": path, "data_sha256": known})
        assert evaluate(str(model), **options).details.get("seen_in_training") == seen
    assert "is not what was trained on (sha256 000000000000, now " in caplog.text


@pytest.mark.parametrize(("template", "space"), [("alpaca", ""), ("question", " ")])
def test_choices_of_letters_follow_the_prompt_as_in_training(template: Any, space: str, tmp_path: Path) -> None:
    """The question template ends in "Answer:", behind which completions begin with a space."""
    config = _config(task="aqua", data=_file(tmp_path, [_row("aqua")]), protocol="choices", template=template)
    model = tiny_model()
    (record,) = evaluate_task(model, TOKENIZER, config).records
    texts = [f"{space}The answer is ({letter})." for letter in "ABCDE"]
    prompt = TOKENIZER(render_prompt(template, "What is 0?"))["input_ids"]
    pairs = [(prompt, TOKENIZER(text)["input_ids"]) for text in texts]
    assert record["log_likelihoods"] == pytest.approx(
        log_likelihoods(model, build_forest(model, pairs), 256, 1).tolist(), abs=1e-3
    )
    assert record["answer"] == "The answer is (B)."
