"""The paper's tasks: the name sets prompt, length, beams and reading; both readings are in the result."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears.config import EvaluateConfig
from shears.config.evaluate_options import ANSWER_FORMS
from shears.data.templates import render_prompt
from shears.errors import InputError
from shears.evaluation.decode import Decoder
from shears.evaluation.evaluated import WrittenText
from shears.evaluation.statistics import wilson_interval
from shears.evaluation.tasks import PAPER_TASKS, Subject, evaluate_task, paper_row
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SUBJECT = Subject(tiny_model(), TOKENIZER)
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
def test_the_name_sets_length_and_beams_and_flags_override_them(task: str) -> None:
    plain, tokens = _config(task=task, data="x"), 32 if task in LABELS else 256
    assert (plain.generates, plain.longest_answer, plain.beams) == (True, tokens, 4)
    chat = plain.in_template("chat")
    assert (chat.max_new_tokens, chat.num_beams) == (32 if task in LABELS else 512, 1)
    other = _config(task=task, data="x", num_beams=1, max_new_tokens=7).in_template("alpaca")
    assert (other.max_new_tokens, other.num_beams) == (7, 1)
    assert _config(**plain.model_dump()) == plain


@pytest.mark.parametrize("task", ANSWER_FORMS)
def test_a_task_by_name_runs_whole(task: str, tmp_path: Path) -> None:
    data = _file(tmp_path, [_row(task, number) for number in range(3)])
    result = evaluate_task(SUBJECT, _config(task=task, data=data, template="alpaca", max_new_tokens=3, num_beams=2))
    assert (result.task, result.n) == (task, 3)
    assert result.records[1]["prompt"] == render_prompt("alpaca", _row(task, 1)["instruction"])
    strict = {"accuracy_strict", "accuracy_strict_low", "accuracy_strict_high"}
    assert result.details.keys() == ({"cut"} if ANSWER_FORMS[task] == "number" else {*strict, "cut"})
    assert len({record["id"] for record in result.records}) == 3
    json.dumps(result.as_data(), allow_nan=False)


def test_a_letter_inside_a_word_counts_officially_and_not_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Because the answer is (C).", "The answer is (B).", "BCD", "A man. The answer is (B)."]
    monkeypatch.setattr(Decoder, "answers", lambda *_: [WrittenText(text, False) for text in texts])
    data = _file(tmp_path, [_row("aqua", number) for number in range(4)])
    result = evaluate_task(SUBJECT, _config(task="aqua", data=data))
    assert [record["correct"] for record in result.records] == [True, True, True, False]
    assert [record["correct_strict"] for record in result.records] == [False, True, False, True]
    assert (result.value, result.details["accuracy_strict"]) == (0.75, 0.5)
    low, high = result.details["accuracy_strict_low"], result.details["accuracy_strict_high"]
    assert (low, high) == wilson_interval(2, 4)


@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        ("gsm8k", "many", "row 1 of the data: .*many"),
        ("gsm8k", "9" * 400, "row 1 of the data: the answer to gsm8k must be a number, got '999"),
        ("aqua", "F", "row 1 of the data: the answer to aqua must be A or B or C or D or E, got 'F'"),
        ("boolq", "maybe", "the answer to boolq must be true or false, got ''"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error(task: str, answer: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_task(SUBJECT, _config(task=task, data=_file(tmp_path, [{**_row(task), "answer": answer}])))


ANSWER = "Please choose the correct answer to the question: "
SCIENCE = {"choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "boolq",
        {"question": "is ice cold", "passage": "Ice is.", "answer": True},
        "Please answer the following question with true or false, question: is ice cold?\n\nAnswer format: true/false",
        "true",
    ),
    (
        "piqa",
        {"goal": "dresser", "sol1": "use a pin", "sol2": "paint", "label": 1},
        "Please choose the correct solution to the question: dresser\n\nSolution1: use a pin\n\nSolution2: paint\n\n"
        "Answer format: solution1/solution2",
        "solution2",
    ),
    (
        "siqa",
        {"context": "Tracy ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        f"{ANSWER}Tracy ran. Why?\n\nAnswer1: a Answer2: b Answer3: c\n\nAnswer format: answer1/answer2/answer3",
        "answer3",
    ),
    (
        "hellaswag",
        {"activity_label": "Ice", "ctx": "He then", "endings": ["a.", "b.", "c.", "d."], "label": "0"},
        "Please choose the correct ending to complete the given sentence: Ice: He then\n\n"
        "Ending1: a. Ending2: b. Ending3: c. Ending4: d.\n\nAnswer format: ending1/ending2/ending3/ending4",
        "ending1",
    ),
    (
        "winogrande",
        {"sentence": "Sarah beat Maria as _ was good.", "option1": "Sarah", "option2": "Maria", "answer": "1"},
        "Please choose the correct answer to fill in the blank to complete the given sentence: Sarah beat Maria as _ "
        "was good.\n\nOption1: Sarah Option2: Maria Answer format: option1/option2",
        "option1",
    ),
    (
        "arc-easy",
        {"question": "What is cold?", **SCIENCE},
        f"{ANSWER}What is cold?\n\nAnswer1: ice Answer2: fire\n\nAnswer format: answer1/answer2",
        "answer2",
    ),
    (
        "arc-challenge",
        {"question": "Hot?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        f"{ANSWER}Hot?\n\nAnswer1: a Answer2: b Answer3: c\n\nAnswer format: answer1/answer2/answer3",
        "answer3",
    ),
    (
        "obqa",
        {"question_stem": "It is", **SCIENCE},
        f"{ANSWER}It is\n\nAnswer1: ice Answer2: fire\n\nAnswer format: answer1/answer2",
        "answer2",
    ),
    (
        "aqua",
        {"question": "2+2?", "options": ["A)4", "B) 5)"], "correct": "A"},
        "2+2? Answer Choices: (A) 4 (B) 5)",
        "A",
    ),
    ("gsm8k", {"question": "How many?", "answer": "1000+1\n#### 1,001"}, "How many?", "1001"),
    ("svamp", {"Body": "Ann has 3", "Question": "How many?", "Answer": "3.0"}, "Ann has 3. How many?", "3.0"),
    ("mawps", {"original_text": "Ann has 3 .", "ans": 3.0, "equation": "X=3"}, "Ann has 3 .", "3.0"),
]


@pytest.mark.parametrize(("task", "row", "instruction", "answer"), CASES, ids=[case[0] for case in CASES])
def test_a_row_of_the_hub_is_written_in_the_papers_words(
    task: str, row: dict[str, Any], instruction: str, answer: str
) -> None:
    made = paper_row(task, row)
    assert (made["instruction"], made["answer"]) == (instruction, answer)
    assert paper_row(task, made) == made


def test_every_task_of_the_paper_has_both_forms() -> None:
    assert PAPER_TASKS.keys() == ANSWER_FORMS.keys() == {case[0] for case in CASES}


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("hellaswag", {"activity_label": "x", "ctx": "y", "endings": ["a", "b"], "label": ""}),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}),
        ("arc-easy", {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": ""}),
        ("arc-easy", {"question": "q", "choices": None, "answerKey": "A"}),
        ("arc-easy", {"question": "q", "choices": ["a", "b"], "answerKey": "A"}),
        ("aqua", {"question": "q", "options": ["4", "5"], "correct": "A"}),
    ],
)
def test_a_row_without_its_label_or_choices_is_refused(task: str, row: dict[str, Any]) -> None:
    """As test splits of the hub are."""
    with pytest.raises(ValueError, match="cannot be used|needs an answer among its choices"):
        paper_row(task, row)
