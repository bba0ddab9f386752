"""Rows of the hub's own sets get the words of LLM-Adapters' files; rows of those files pass as they are."""

from typing import Any

import pytest

from shears.config.evaluate import ANSWER_FORMS
from shears.errors import InputError
from shears.evaluation.tasks.paper_tasks import HUB_FORMS, paper_row

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
    assert HUB_FORMS.keys() == ANSWER_FORMS.keys() == {case[0] for case in CASES}


def test_a_row_of_another_form_is_an_error_that_names_the_columns() -> None:
    with pytest.raises(InputError, match="piqa must have the columns instruction and answer, or goal, sol1.*got text"):
        paper_row("piqa", {"text": "a"})


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
    with pytest.raises(InputError, match=f"a row of {task} must have its choices and an answer among them"):
        paper_row(task, row)
