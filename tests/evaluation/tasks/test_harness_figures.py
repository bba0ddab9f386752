"""Figures from lm-eval's results: from their own samples, with errors and intervals if these are known."""

import datetime
import json
import math
import statistics
from typing import Any

import numpy as np
import pytest

from shears.errors import InputError
from shears.evaluation.statistics import wilson_interval
from shears.evaluation.tasks.harness import summary, task_figures
from shears.evaluation.tasks.harness import task_records as records_of
from shears.records.figures import is_share


def test_a_figure_is_of_the_samples_of_its_own_filter() -> None:
    bits = {"strict": [1, 0, 0, 0], "flexible": [1, 1, 1, 0]}
    samples = [{"doc_id": number, "filter": name, "em": bit} for name, each in bits.items()
               for number, bit in enumerate(each)]  # fmt: skip
    results = {"results": {"t": {"em,strict": 0.25, "em,flexible": 0.75}}, "samples": {"t": samples}}
    found = {figure["metric"]: figure for figure in task_figures("t", results)}
    for name, right in (("strict", 1), ("flexible", 3)):
        figure = found[f"em,{name}"]
        assert (figure["n"], figure["ci95"]) == (4, list(wilson_interval(right, 4)))
        assert figure["stderr"] == pytest.approx(statistics.stdev(bits[name]) / 2)


def test_a_mean_of_shares_is_a_share_and_a_mean_with_perplexities_is_not() -> None:
    figures = [
        {"task": metric, "metric": metric, "value": value, "stderr": 0.0, "n": 2, "ci95": [value, value]}
        for metric, value in (("acc", 0.5), ("exact_match", 1.0), ("byte_perplexity", 9.0))
    ]
    mean, mixed = summary(figures[:2], []), summary(figures, [])
    assert (mean.metric, mean.value) == ("accuracy (mean of acc, exact_match)", 0.75)
    assert is_share(mean.metric)
    assert not is_share(mixed.metric)


def results_of(values: list[float], value: float, stderr: float | str = "N/A") -> dict[str, Any]:
    """Return the results of one task in the form of lm-eval."""
    samples = [{"doc_id": number, "f1": each} for number, each in enumerate(values)]
    return {"results": {"t": {"f1,none": value, "f1_stderr,none": stderr}}, "samples": {"t": samples}}


def test_an_error_that_lm_eval_lacks_is_computed_from_the_samples_or_unknown(caplog: pytest.LogCaptureFixture) -> None:
    (of_samples,) = task_figures("t", results_of([0.2, 0.4, 0.9], 0.5))
    assert of_samples["stderr"] == pytest.approx(statistics.stdev([0.2, 0.4, 0.9]) / math.sqrt(3))
    half = 1.959964 * of_samples["stderr"]
    assert of_samples["ci95"] == pytest.approx([0.5 - half, 0.5 + half])
    (unknown,) = task_figures("t", results_of([0.2, 0.4, 0.9], 0.7))  # no mean of the samples
    assert (unknown["stderr"], unknown["ci95"]) == (None, None)
    summary([of_samples], [])
    assert "left out of the interval" not in caplog.text
    summary([of_samples, {**unknown, "task": "odd"}], [])
    assert "left out of the interval of the mean: odd" in caplog.text


def test_figures_that_are_not_finite_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert task_figures("t", results_of([0.2, 0.4], math.nan)) == []
    assert "f1 of t is left out: it must be a finite number, got nan" in caplog.text
    for other in ("N/A", [0.1, 0.2], None):
        assert task_figures("t", results_of([0.2, 0.4], other)) == []  # type: ignore[arg-type]  # as tasks may give it
    (figure,) = task_figures("t", results_of([0.2, 0.4, 0.9], 0.5, stderr=math.nan))
    assert figure["stderr"] == pytest.approx(statistics.stdev([0.2, 0.4, 0.9]) / math.sqrt(3))
    with pytest.raises(InputError, match="must give a finite figure, got none of any task"):
        summary([], [])


@pytest.mark.parametrize(("metrics", "chosen"), [(["acc"], 3), (["acc", "acc_mutual_info"], 1)])
def test_the_prediction_is_one_of_the_choices(metrics: list[str], chosen: int) -> None:
    """For acc_mutual_info, lm-eval appends a score of every choice without its question."""
    sample = {
        "doc_id": 0, "doc_hash": "0" * 64, "doc": {"question": "Which?"}, "target": "1", "filter": "none",
        "arguments": [["Which?", " a"], ["Which?", " b"], ["", " a"], ["", " b"]], "metrics": metrics, "acc": 1.0,
        "filtered_resps": [[-3.0, False], [-2.0, False], [-1.5, False], [-1.0, False]],
    }  # fmt: skip
    (record,) = records_of("t", [sample])
    assert record["prediction"] == chosen


def test_a_record_is_json_whatever_types_a_task_uses() -> None:
    target = {"day": datetime.date(2026, 1, 2), 3: [np.int64(4), np.float32(0.5), math.nan, True], "none": None}
    sample = {
        "doc_id": 0, "doc_hash": "0" * 64, "doc": {"question": "When?"}, "target": target, "filter": "none",
        "arguments": [["When?", {}]], "metrics": [], "filtered_resps": [{"1", }],
    }  # fmt: skip
    (record,) = json.loads(json.dumps([records_of("t", [sample])[0]], allow_nan=False))
    assert record["answer"] == {"day": "2026-01-02", "3": [4, 0.5, None, True], "none": None}
    assert record["prediction"] == "{'1'}"


def test_correct_is_the_same_metric_for_all_examples() -> None:
    given = [{"f1": 1.0, "em": 0.0}, {"f1": 0.67, "em": 1.0}, {"f1": 0.0, "em": 0.0}]
    samples = [
        {"doc_id": number, "doc": {}, "doc_hash": "h", "arguments": [["p"]], "filtered_resps": ["a"], "target": "t",
         "filter": "none", "metrics": ["f1", "em"], **each}
        for number, each in enumerate(given)
    ]  # fmt: skip
    records = records_of("t", samples)
    assert [record["correct"] for record in records] == [False, True, False]
    assert not any("correct_em" in record or "correct_f1" in record for record in records)
