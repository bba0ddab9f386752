"""Comparable measurements are drawn together and paired by question; for others the page gives the reason."""

from pathlib import Path
from typing import Any

import pytest

from shears.report.page import write_report
from tests.report.made import MODELS, Reader, page_of, records, write_run

PAIRED, DRAWN = "Paired differences on the same examples", "Both runs with 95 % intervals"


def run_with_ids(template: str = "question", **changes: Any) -> dict[str, Any]:
    """Return the files of a run whose questions have ids; `changes` update every measurement."""
    files = records()
    for path in (path for path in files if path.startswith("evaluation/")):
        for record in files[path]["records"]:
            record |= {"id": f"q{record['index']}", "prompt": f"{template} {record['index']}?"}
        files[path] |= {"task": "number", "data_sha256": "a" * 64, "config": {"data": "test.jsonl"}, **changes}
    return files


def compared(folder: Path, one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the text of the report that compares two runs."""
    first, second = write_run(folder / "one", one), write_run(folder / "two", other)
    return Reader(write_report(first, compare=second).read_text()).text


def test_a_run_whose_models_had_other_prompts_is_paired_by_question(tmp_path: Path) -> None:
    """Runs of earlier versions have such prompts. The last file also has another order."""
    files, name = run_with_ids(), "evaluation/sparse_sub_adapter.json"
    files[name] = run_with_ids("alpaca")[name]
    files[name]["records"].reverse()
    text = Reader(page_of(tmp_path, files)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "the same for every model, but sparse + sub-adapter had other prompts, which also changes figures" in text
    assert "sparse + sub-adapter against sparse+25.0-38.3 to +71.7100.5" in text  # as with equal prompts
    assert "Examples by which models are right" in text
    assert "The prompts are those of dense; sparse + sub-adapter had other ones." in text
    assert "sparse + sub-adapter says 1" in text


def test_the_page_says_why_nothing_can_be_paired(tmp_path: Path) -> None:
    files = run_with_ids()
    for record in files["evaluation/sparse_sub_adapter.json"]["records"]:
        del record["id"]
        record["prompt"] = f"Below is an instruction. {record['prompt']}"
    text = Reader(page_of(tmp_path, files)).text
    assert "4 examples, not the same for every model." in text
    pairs = "sparse + sub-adapter against dense; sparse + sub-adapter against sparse"
    reason = "they have 4 and 4 examples, 0 of them in common (examples without an id are identified by their prompts)"
    assert f"Not paired ({pairs}): {reason}." in text
    assert PAIRED not in text
    for name in MODELS:
        path = f"evaluation/{name.replace(' + ', '_').replace('-', '_')}.json"
        files[path] = {**files[path], "task": "perplexity", "records": [{"window": 0, "nll": 2.0, "tokens": 9}]}
    text = Reader(page_of(tmp_path, files)).text
    assert f"Not paired ({pairs}): no answers are recorded as right or wrong." in text
    assert "the same for every model." in text


def test_the_same_rows_under_another_path_are_the_same(tmp_path: Path) -> None:
    other = run_with_ids(config={"data": "copy.jsonl"})
    other["evaluation.json"]["data"] = "copy.jsonl"
    text = compared(tmp_path, run_with_ids(), other)
    assert DRAWN in text
    assert "sparse: one against two+0.0" in text
    assert "not comparable" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": "choices"}, "the protocols are generate and choices"),
        ({"task": "equation"}, "the tasks are number and equation"),
    ],
)
def test_another_protocol_or_task_is_neither_drawn_nor_paired(
    changes: dict[str, str], reason: str, tmp_path: Path
) -> None:
    config = {"protocol": "generate", "task": "number"}
    other = run_with_ids(**({"task": changes["task"]} if "task" in changes else {}), config=config | changes)
    text = compared(tmp_path, run_with_ids(config=config), other)
    assert f"one compared with two. Their figures are not comparable: {reason}." in text
    assert DRAWN not in text
    assert text.count(PAIRED) == 1  # within the run itself


def test_other_content_under_the_same_path_is_not_comparable(tmp_path: Path) -> None:
    other = run_with_ids(data_sha256="b" * 64)
    for path in (path for path in other if path.startswith("evaluation/")):
        other[path]["records"][0]["id"] = "another question"
    text = compared(tmp_path, run_with_ids(), other)
    assert "Their figures are not comparable: they have 4 and 4 examples, 3 of them in common." in text
    other = run_with_ids(data_sha256="b" * 64)
    for path in (path for path in other if path.startswith("evaluation/")):
        other[path]["records"][0]["answer"] = 7.0
    text = compared(tmp_path / "answers", run_with_ids(), other)
    assert "not comparable: 1 of the 4 examples have another right answer." in text
    assert DRAWN not in text


def test_texts_are_identified_by_their_hash_or_else_their_path(tmp_path: Path) -> None:
    def text_run(path: str = "a.txt", sha: str | None = "a", length: int = 512) -> dict[str, Any]:
        config = {"data": path, "sequence_length": length}
        return run_with_ids(task="perplexity", metric="perplexity", data_sha256=sha, config=config, records=[])

    message = "Their figures are not comparable: "
    assert message not in compared(tmp_path / "1", text_run(), text_run("b.txt"))
    assert f"{message}a.txt had other content." in compared(tmp_path / "2", text_run(), text_run(sha="b"))
    assert f"{message}the data are a.txt and b.txt." in compared(tmp_path / "3", text_run(), text_run("b.txt", None))
    assert f"{message}sequence_length is 512 and 9." in compared(tmp_path / "4", text_run(), text_run(length=9))


def test_the_same_questions_in_other_prompts_are_paired_with_a_remark(tmp_path: Path) -> None:
    text = compared(tmp_path, run_with_ids(), run_with_ids("alpaca"))
    assert "The questions are the same but the prompts differ (dense: one against two; sparse: one against two;" in text
    assert "sparse: one against two+0.0" in text
    assert DRAWN in text


def test_a_contaminated_run_begins_with_a_warning_and_shows_the_strict_reading(tmp_path: Path) -> None:
    files, name = run_with_ids(), "evaluation/sparse_sub_adapter.json"
    strict = {"accuracy_strict": 0.25, "accuracy_strict_low": 0.05, "accuracy_strict_high": 0.7}
    files[name]["details"] = {**strict, "cut": 2.0, "seen_in_training": 3.0, "accuracy_unseen": 0.125}
    text = Reader(page_of(tmp_path, files)).text.replace("\N{NO-BREAK SPACE}", " ")
    warning = (
        "Warning: 3 of the 4 test questions stand in the training data of sparse + sub-adapter; on the others its "
        "accuracy is 12.5 %. Its accuracy on all of them does not show what it learned."
    )
    assert text.index(warning) < text.index("Sparse + sub-adapter is level with dense")
    assert "Accuracy strict: sparse + sub-adapter 25.0 %." in text
    assert "Answers cut at the longest length: sparse + sub-adapter 2 of 4." in text
    assert "50.0 %25.0 % to 75.0 %25.0 % (5.0 % to 70.0 %)4" in text  # accuracy, interval, strict, n
    assert "Warning" not in Reader(page_of(tmp_path / "clean", run_with_ids())).text


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "exact_match,strict-match"])
def test_shares_of_lm_eval_are_percentages(metric: str, tmp_path: Path) -> None:
    files = {"evaluation.json": records()["evaluation.json"]}
    for row in files["evaluation.json"]["models"]:
        row["metric"] = metric
    text = Reader(page_of(tmp_path, files)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"Sparse + sub-adapter has {metric} 50.0 %, against 50.0 % of dense." in text  # no answers to pair
