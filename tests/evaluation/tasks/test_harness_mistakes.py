"""Wrong options for lm-eval, and YAML tasks that it cannot run: errors of one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shears.errors import InputError
from shears.evaluation.run import evaluate
from tests.tiny import save_tiny

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the keywords of `evaluate` for a tiny model and a task of one question."""
    folder = tmp_path_factory.mktemp("mistakes")
    save_tiny(folder / "base")
    (folder / "rows.jsonl").write_text(json.dumps({"question": "1 or 2?", "choices": ["1", "2"], "answer": 0}))
    task = {
        "task": "tiny_choices", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}, "doc_to_text": "Q: {{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(task))
    return {"model": str(folder / "base"), "harness": "tiny_choices", "include_path": str(folder), "device": "cpu"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include_path": "nowhere"}, "include_path must be a folder"),
        ({"harness": "shears_boolq", "data": "nowhere"}, "needs the file nowhere/boolq/test.json"),
        ({"harness": (), "task": "harness", "data": "."}, "task harness needs tasks of lm-eval"),
        ({"task": "number", "data": "x"}, "harness and include_path need task harness, got task number"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(
    options: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(**{**options, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_split": "tset"}, "got KeyError: 'tset'"),
        ({"doc_to_text": "{{asked.of}}"}, "got UndefinedError: 'asked' is undefined"),
        ({"outputtype": "multiple_choice"}, "got TypeError: .* unexpected keyword argument 'outputtype'"),
        ({"dataset_path": None}, "got TypeError"),
    ],
)
def test_a_yaml_that_lm_eval_cannot_run_is_one_line(
    options: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = yaml.safe_load((Path(options["include_path"]) / "tiny.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | {"task": "mine"} | change))
    with pytest.raises(InputError, match=f"lm-eval must be able to run mine, {message}"):
        evaluate(**{**options, "harness": "mine", "include_path": str(tmp_path)})


@pytest.mark.slow  # lm-eval reads thousands of its own tasks
def test_an_unknown_task_is_an_error_that_names_the_nearest(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="got 'tiny_choises'; did you mean 'tiny_choices'"):
        evaluate(**{**options, "harness": "tiny_choises"})
