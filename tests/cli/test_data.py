"""shears data shows rows as the model will see them and counts what train would use."""

import json
from pathlib import Path

import pytest

from shears.config import TrainConfig
from shears.data.examples import load_examples, preview, tokenize_all
from tests.conftest import Call
from tests.tiny import save_tiny, tiny_tokenizer

ROWS = [
    {"prompt": "Q: Ünï \x1b[31mred\u202e?\nA:", "completion": " 4"},
    {"instruction": "Add 1 and 2", "output": "3"},
    {"prompt": "x", "completion": " "},
    {"text": "foo"},
    {"prompt": "long " * 20, "completion": " y"},
]
TEXTS = ["Q: Ünï \x1b[31mred\u202e?\nA: 4", "Question: Add 1 and 2\nAnswer: 3", "long " * 20 + " y"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_tokens_and_loss_are_those_of_the_training(file: Path) -> None:
    tokenizer = tiny_tokenizer()
    usable = file.with_name("usable.jsonl")
    usable.write_text("".join(json.dumps(ROWS[index]) + "\n" for index in (0, 1)))
    trained = tokenize_all(load_examples(str(usable), "question", tokenizer), tokenizer, 512)
    shown = preview(TrainConfig(data=str(file)), tokenizer, show=2)["shown"]
    for each, row in zip(shown, trained, strict=True):
        assert "".join(part["text"] for part in each["parts"]) == tokenizer.decode(row.input_ids)
        with_loss = [label for label in row.labels if label != -100]
        assert "".join(part["text"] for part in each["parts"] if part["loss"]) == tokenizer.decode(with_loss)
        assert sum(part["tokens"] for part in each["parts"] if part["loss"]) == len(with_loss)


def test_counts_and_quantiles(file: Path, call: Call) -> None:
    code, output, _ = call("data", file, "--model", "base", "--max-length", "60", "--json", "--show", "1")
    content = json.loads(output)
    assert code == 0
    assert (content["rows"], content["used"], content["longer_than_max_length"]) == (5, 2, 1)
    assert content["without_completion"] == [3]
    assert [entry["row"] for entry in content["refused"]] == [4]
    first, second, last = (len(text.encode()) + 1 for text in TEXTS)  # bytes are tokens, and one ends the text
    lengths = sorted([first, second, last])
    expected = {"min": lengths[0], "median": lengths[1], "p95": lengths[2], "max": lengths[2], "total": sum(lengths)}
    assert content["tokens"].items() >= expected.items()
    assert len(content["shown"]) == 1


def test_a_pipe_gets_brackets_and_no_escape(file: Path, call: Call) -> None:
    code, output, _ = call("data", file, "--model", "base", "--max-length", "60")
    assert code == 0
    assert "A:[ 4<|end|>]" in output
    assert r"\x1b[31mred" in output
    assert "\x1b" not in output
    assert "rows.jsonl has 5 rows, train uses 2\n" in output
    assert "left out because they are longer than 60 tokens: 1 (raise --max-length to keep them)" in output
    assert "left out because they have no completion: 1 (the first is row 3)" in output
    assert "row 4: a row must have the columns" in output


def test_options_come_from_the_train_section(file: Path, call: Call) -> None:
    file.with_name("recipe.yaml").write_text("train: {max_length: 20, template: alpaca, alpha: 8}")
    assert json.loads(call("data", file, "--model", "base", "--config", "recipe.yaml", "--json")[1])["used"] == 0
    assert call("data", file, "--train-on", "nothing")[0] == 2


def test_data_of_which_train_would_use_no_row_exit_with_2(file: Path, call: Call) -> None:
    code, output, errors = call("data", file, "--model", "base", "--max-length", "5")
    assert (code, "5 rows, train uses 0" in output) == (2, True)
    assert errors.splitlines()[-1] == (
        f"error: data must have at least one row that train can use, {file} has none in 5 rows; "
        "raise --max-length or correct the rows"
    )
