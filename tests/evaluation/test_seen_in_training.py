"""Test questions that stand in the training data are marked, counted and told."""

import json
from pathlib import Path
from typing import Any

import pytest

from shears.data.rows import source_fingerprint
from shears.data.templates import render_prompt
from shears.errors import InputError
from shears.evaluation.evaluated import check_apart
from shears.evaluation.run import evaluate
from shears.records.artifacts import SUB_ADAPTER, write_json
from tests.tiny import save_tiny

ROWS = [{"instruction": f"What is {number}?", "answer": f"{number}.0"} for number in range(5)]
OPTIONS: dict[str, Any] = {"task": "mawps", "max_new_tokens": 2, "num_beams": 1}


def _file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def _trained(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Save a model with a record of an adapter that was trained on these rows and merged into it."""
    made = save_tiny(folder)
    write_json(made / SUB_ADAPTER, {"data": _file(folder / "train.json", rows), "template": "question"})
    return made


def test_questions_match_in_other_templates_and_spacing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = ["Question: What is 0 ?\nAnswer:", render_prompt("alpaca", "What is 1?")]
    model = _trained(tmp_path / "model", [{"prompt": prompt, "completion": "x"} for prompt in prompts])
    result = evaluate(str(model), data=_file(tmp_path / "rows.json", ROWS), **OPTIONS)
    assert [record["seen_in_training"] for record in result.records] == [True, True, False, False, False]
    assert result.details["seen_in_training"] == 2
    assert result.details["accuracy_unseen"] == sum(record["correct"] for record in result.records[2:]) / 3
    assert "2 of 5 test questions also occur in the training data" in caplog.text


def test_data_that_changed_or_are_gone_are_told_and_not_searched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _trained(tmp_path / "model", [{"prompt": row["instruction"], "completion": "x"} for row in ROWS])
    path = str(model / "train.json")
    data = _file(tmp_path / "rows.json", ROWS[:2])
    for known, seen in ((source_fingerprint(path), 2), ("0" * 64, None)):
        write_json(model / SUB_ADAPTER, {"template": "question", "data": path, "data_sha256": known})
        assert evaluate(str(model), data=data, **OPTIONS).details.get("seen_in_training") == seen
    assert "it has changed since the training" in caplog.text
    (model / "train.json").unlink()
    assert "seen_in_training" not in evaluate(str(model), data=data, **OPTIONS).details


def test_a_search_on_the_test_rows_is_refused_and_on_some_of_their_questions_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    all_rows, test, other = (_file(tmp_path / f"{name}.json", rows) for name, rows in
                             (("all", ROWS), ("test", ROWS[1:3]), ("other", [*ROWS[2:], {"prompt": "q"}])))  # fmt: skip
    with pytest.raises(InputError, match="search must use validation data, not the test data; all 2 rows"):
        check_apart(all_rows, test)
    with caplog.at_level("WARNING"):
        check_apart(all_rows, test, limit=1)
        assert not [each for each in caplog.records if each.levelname == "WARNING"]
        check_apart(other, test)
    assert any(message.startswith("1 test questions of") for message in caplog.messages)
