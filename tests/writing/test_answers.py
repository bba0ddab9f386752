"""`generate --data`: the rows of a file with the answers of a model, an adapter or a package."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shears.records.artifacts import MERGED, write_json
from shears.records.journal import append_row
from shears.runtime.loading import load
from shears.writing import answers, writer
from shears.writing.answers import answer_file
from tests.conftest import Call
from tests.tiny import END, save_tiny

ROWS: list[dict[str, Any]] = [
    {"question": "who?", "id": 7},
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "gold"}]},
    {"instruction": "add", "output": "3x"},
]
SHORT: dict[str, Any] = {"max_new_tokens": 5}


@pytest.fixture(autouse=True)
def in_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as `load` does for a model folder, with and without our kernels."""
    monkeypatch.setattr(answers, "native_backend", lambda *_: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


def saved(folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return str(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_gets_the_answer_of_the_engine(model: Path, tmp_path: Path) -> None:
    rows = rows_of(answer_file(model, saved(tmp_path), tmp_path / "out.jsonl", **SHORT))
    assert [{name: value for name, value in row.items() if name not in ("generated", "cut")} for row in rows] == ROWS
    engine = load(str(model))
    asked = [f"<user>{text}{END}<assistant>" for text in ("who?", "hello", "add")]
    for row, prompt in zip(rows, asked, strict=True):
        expected = engine.generate(engine.tokenizer(prompt)["input_ids"], **SHORT)
        assert row["generated"] == expected.text.strip()
        assert row["cut"] is (expected.finish == "length")


def test_a_trained_model_is_asked_in_its_template(model: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(model, tmp_path / "trained")
    write_json(trained / MERGED, {"template": "question", "form": {"rows": "instruction"}})
    rows = rows_of(answer_file(trained, saved(tmp_path), tmp_path / "out.jsonl", **SHORT))
    expected = load(str(model)).generate("Question: add\nAnswer:", **SHORT)
    assert rows[2]["generated"] == expected.text


def test_an_interrupted_call_continues_and_another_one_is_refused(
    model: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(tmp_path)
    whole = answer_file(model, data, tmp_path / "whole.jsonl", **SHORT)

    def failing(path: Path, row: Any) -> None:
        append_row(path, row)
        raise KeyboardInterrupt

    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(writer, "append_row", failing)
        with pytest.raises(KeyboardInterrupt):
            answer_file(model, data, output, **SHORT)
    assert not output.exists()
    words = ["generate", model, "--data", data, "--output", output, "--max-new-tokens"]
    code, _, errors = call(*words, "6")
    assert code == 2
    assert "max_new_tokens was 5 and is now 6" in errors
    code, printed, _ = call(*words, "5")
    assert code == 0
    assert "3 answers" in printed
    assert output.read_bytes() == whole.read_bytes()
    code, _, errors = call(*words, "5")
    assert code == 2
    assert "the output must not exist yet" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl", "whole.jsonl"]


def test_every_answer_of_an_untrained_model_obeys_the_schema(model: Path, tmp_path: Path, call: Call) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": -9, "maximum": 99}, "t": {"enum": ["x", None]}},
        "required": ["n", "t"],
        "additionalProperties": False,
    }
    file, data, output = tmp_path / "schema.json", tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps(schema))
    data.write_text("".join(f"{json.dumps({'question': f'which {number}?'})}\n" for number in range(12)))
    words = ["generate", model, "--data", data, "--output", output, "--temperature", "1", "--json-schema"]
    for bad in (tmp_path / "none.json", data):
        code, _, errors = call(*words, bad)
        assert code == 2
        assert len(errors.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"schema.json", "rows.jsonl"}
    code, _, errors = call(*words, file)
    assert code == 0, errors
    rows = rows_of(output)
    for row in rows:
        jsonschema.validate(json.loads(row["generated"]), schema)
    assert not any(row["cut"] for row in rows)
    assert len({row["generated"] for row in rows}) > 5


@pytest.mark.parametrize("words", ["", "--data rows.jsonl", "--prompt a --data rows.jsonl --output out"])
def test_a_call_names_a_prompt_or_two_files(call: Call, model: Path, words: str) -> None:
    code, _, errors = call("generate", model, *words.split())
    assert code == 2
    assert "generate needs --prompt TEXT, or --data FILE with --output FILE" in errors
