"""Our own tasks for lm-eval: one YAML for each of the paper's, and how generated answers are scored."""

import pytest
import yaml

from shears.config.evaluate import ANSWER_FORMS
from shears.evaluation.tasks.harness import TASKS
from shears.evaluation.tasks.paper_tasks import score_for_lm_eval

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own


@pytest.mark.parametrize(
    ("task", "answer", "text", "figures"),
    [
        ("mawps", "3.0", "The answer is 3. 2 left", {"acc": 0.0, "acc_strict": 1.0}),
        ("aqua", "B", "Because", {"acc": 1.0, "acc_strict": 0.0}),
        ("boolq", "true", "the correct answer is true", {"acc": 1.0, "acc_strict": 1.0}),
    ],
)
def test_generated_answers_are_scored_by_both_rules(
    task: str, answer: str, text: str, figures: dict[str, float]
) -> None:
    assert score_for_lm_eval({"task": task, "answer": answer}, [text]) == figures


def test_every_task_of_the_paper_is_a_yaml() -> None:
    names = {path.stem for path in TASKS.glob("shears_*.yaml")}
    expected = {f"shears_{task.replace('-', '_')}" for task in ANSWER_FORMS}
    generated = {f"shears_{task.replace('-', '_')}_generate" for task, form in ANSWER_FORMS.items() if form == "label"}
    assert names == expected | generated
    for path in TASKS.glob("shears_*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["task"] == path.stem
        assert content["dataset_kwargs"]["task"].replace("-", "_") in path.stem
