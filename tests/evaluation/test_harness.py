"""lm-eval on a loaded model: the figures of plain lm_eval; the tasks of shears work in both."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from shears.errors import InputError
from shears.evaluation.harness import task_figures
from shears.evaluation.run import evaluate
from shears.evaluation.statistics import wilson_interval
from tests.tiny import save_tiny, tiny_model

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own

YAML = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_text: "Q: {{{{question}}}}"
"""
CHOICES = YAML + """
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""  # fmt: skip
MATCH = YAML + """
output_type: generate_until
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{max_gen_toks: 4, until: []}}
metric_list: [{{metric: exact_match}}]
"""  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, an adapter that changes it, and two YAML tasks on a file of 12 questions."""
    folder = tmp_path_factory.mktemp("harness")
    save_tiny(folder / "base")
    options: dict[str, Any] = {"r": 2, "lora_alpha": 256, "init_lora_weights": False}
    config = LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        get_peft_model(tiny_model(), config).save_pretrained(str(folder / "adapter"))
    rows = [
        {"question": f"{n} or {n * n}?", "choices": [str(n), str(n * n), "none of the two"], "answer": n % 3}
        for n in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for kind, text in (("choices", CHOICES), ("match", MATCH)):
        (folder / "tasks" / f"{kind}.yaml").write_text(text.format(kind=kind, file=folder / "rows.jsonl"))
    return folder


@pytest.fixture(autouse=True)
def _only_tiny_tasks(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator

    monkeypatch.setattr(
        evaluator,
        "TaskManager",
        partial(evaluator.TaskManager, include_path=str(made / "tasks"), include_defaults=False),
    )


def _options(made: Path, **changes: Any) -> dict[str, Any]:
    return {"harness": "tiny_choices,tiny_match", "device": "cpu", **changes}


@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_the_figures_are_those_of_plain_lm_eval(made: Path, adapter: str | None) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    result = evaluate(str(made / "base"), adapter=str(made / adapter) if adapter else None, **_options(made))
    arguments = f"pretrained={made / 'base'}" + (f",peft={made / adapter}" if adapter else "")
    manager = TaskManager(include_path=str(made / "tasks"), include_defaults=False)
    plain: Any = simple_evaluate(
        "hf", arguments, ["tiny_choices", "tiny_match"], task_manager=manager, device="cpu", batch_size=1
    )
    expected = {
        (task, key.removesuffix(",none")): (value, figures[f"{key.removesuffix(',none')}_stderr,none"])
        for task, figures in plain["results"].items()
        for key, value in figures.items()
        if key.endswith(",none") and "_stderr" not in key
    }
    found = {(each["task"], each["metric"]): (each["value"], each["stderr"]) for each in result.figures}
    assert found == expected
    assert len(found) == 3
    for task, samples in plain["samples"].items():
        bits = {sample["doc_id"]: bool(sample[sample["metrics"][0]]) for sample in samples}
        assert bits == {record["index"]: record["correct"] for record in result.records if record["task"] == task}


def test_figures_have_counts_intervals_and_a_mean(made: Path, tmp_path: Path) -> None:
    result = evaluate(str(made / "base"), tmp_path / "figures.json", **_options(made, limit=5))
    assert [(each["task"], each["metric"], each["n"]) for each in result.figures] == [
        ("tiny_choices", "acc", 5), ("tiny_choices", "acc_norm", 5), ("tiny_match", "exact_match", 5),
    ]  # fmt: skip
    first, _, match = result.figures
    assert first["ci95"] == list(wilson_interval(round(5 * first["value"]), 5))
    share = first["value"]
    assert first["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 4))
    assert result.value == (first["value"] + match["value"]) / 2
    assert (result.n, len(result.records)) == (10, 10)
    assert json.loads((tmp_path / "figures.json").read_text())["figures"] == result.figures


def test_a_task_with_several_filters_counts_every_example_once(made: Path) -> None:
    filters = [("never", "never (.)"), ("all", "(?s)(.*)")]
    content = yaml.safe_load((made / "tasks" / "match.yaml").read_text()) | {
        "task": "tiny_filters",
        "filter_list": [{"name": name, "filter": [{"function": "regex", "regex_pattern": pattern},
                                                  {"function": "take_first"}]} for name, pattern in filters],
    }  # fmt: skip
    (made / "tasks" / "filters.yaml").write_text(yaml.safe_dump(content))
    result = evaluate(str(made / "base"), **_options(made, harness="tiny_filters"))
    assert [(each["metric"], each["n"]) for each in result.figures] == [
        ("exact_match,never", 12),
        ("exact_match,all", 12),
    ]
    assert all(each["ci95"] == list(wilson_interval(round(12 * each["value"]), 12)) for each in result.figures)
    assert (result.n, [record["index"] for record in result.records]) == (12, list(range(12)))


def test_a_figure_that_is_not_finite_is_left_out_and_an_unknown_task_is_one_error(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [{"doc_id": number, "f1": each} for number, each in enumerate((0.2, 0.4))]
    results = {
        "results": {"t": {"f1,none": math.nan, "em,none": 0.3, "em_stderr,none": 0.1}},
        "samples": {"t": samples},
    }
    (figure,) = task_figures("t", results)
    assert (figure["metric"], figure["stderr"]) == ("em", 0.1)
    assert figure["ci95"] == pytest.approx([0.3 - 0.1959964, 0.3 + 0.1959964])
    assert "f1 of t is left out: it must be a finite number, got nan" in caplog.text
    with pytest.raises(InputError, match="harness tiny_nothing cannot be used"):
        evaluate(str(made / "base"), **_options(made, harness="tiny_nothing"))
