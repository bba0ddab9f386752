"""YAML tasks of a named folder are data, and mistakes in them or in options are errors of one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shears.errors import InputError
from shears.evaluation.run import evaluate
from shears.evaluation.tasks.harness import TASKS, refuse_code
from tests.tiny import save_tiny

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}"
CODE = {
    "process_docs: !function stranger.run": "!function stranger.run",
    "doc_to_text: !<!function> stranger.run": "!function stranger.run",
    "process_docs: !!python/name:stranger.run": "python/name:stranger.run",
    "class: /abs/stranger.Task": "a class",
    "metric_list: [{metric: stranger/metric}]": "the metric stranger/metric of the hub",
    "metric_list: [{metric: acc, hf_evaluate: true}]": "a metric of the hub",
    "include: ../beside/more.txt": "!function stranger.run",
    "include: [ok.txt, ../beside/more.txt]": "!function stranger.run",
}


def task(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text(json.dumps({"question": "1 or 2?", "choices": ["1", "2"], "answer": 0}))
    return {
        "task": "mine", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}, "doc_to_text": "Q: {{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}], **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("line", "named"), CODE.items())
def test_a_task_that_names_code_is_refused_before_it_runs(line: str, named: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("tasks", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stranger.py").write_text(f"open({str(marker)!r}, 'w').close()\nrun = Task = print\n")
    (tmp_path / "tasks" / "ok.txt").write_text("test_split: test\n")
    (tmp_path / "beside" / "more.txt").write_text("process_docs: !function stranger.run\n")
    (tmp_path / "tasks" / "mine.yaml").write_text(f"task: mine\ndataset_path: json\n{line}\n")
    options = {"harness": "mine", "include_path": str(tmp_path / "tasks"), "device": "cpu"}
    with pytest.raises(InputError, match=r"a task must be data alone, .* if you trust its folder") as caught:
        evaluate(str(save_tiny(tmp_path / "base")), **options)
    assert named in str(caught.value)
    assert not marker.exists()


def test_tasks_may_include_those_of_shears(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"include: {TASKS / '_choices.yaml'}\ntask: mine\n")
    refuse_code(tmp_path, TASKS)
    with pytest.raises(InputError, match="!function"):
        refuse_code(tmp_path)


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_choice", "doc_to_target"])
def test_templates_are_rendered_in_a_sandbox(key: str, tmp_path: Path) -> None:
    from lm_eval import utils

    before = utils.env
    marker = tmp_path / "ran"
    content = task(tmp_path, **{key: ESCAPE.replace("MARKER", str(marker))})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="SecurityError"):
        evaluate(str(save_tiny(tmp_path / "base")), harness="mine", include_path=str(tmp_path), device="cpu")
    assert not marker.exists()
    assert utils.env is before


def test_the_environment_lets_a_task_run_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "mine_functions.py").write_text(
        f"from pathlib import Path\n\ndef run(rows):\n    Path({str(marker)!r}).touch()\n    return rows\n"
    )
    text = yaml.safe_dump(task(tmp_path)) + "process_docs: !function mine_functions.run\n"
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setenv("SHEARS_TASK_CODE", "1")
    result = evaluate(str(save_tiny(tmp_path / "base")), harness="mine", include_path=str(tmp_path), device="cpu")
    assert result.n == 1
    assert marker.exists()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the keywords of `evaluate` for a tiny model and a task of one question."""
    folder = tmp_path_factory.mktemp("mistakes")
    save_tiny(folder / "base")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(task(folder, task="tiny_choices")))
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
