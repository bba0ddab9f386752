"""Text that a model writes, and its answers to prompts: a function of their number, kept and resumed."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shears import export_adapter
from shears.adapt.train import train
from shears.config import WriteConfig
from shears.data.calibration import calibration_batches
from shears.data.examples import load_examples, tokenize_all
from shears.data.templates import TO_REASON
from shears.errors import InputError
from shears.models.load import load_model
from shears.records import artifacts as journal
from shears.records.artifacts import write_json
from shears.records.folders import partial_folder
from shears.records.paths import file_fingerprint
from shears.runtime.continuation import TextSettings
from shears.runtime.engine import decoding_by
from shears.runtime.transformers_backend import TransformersBackend
from shears.writing import written
from shears.writing.authors import TextAuthor
from shears.writing.written import answers_source, text_source, write, written_rows
from tests.conftest import Call
from tests.tiny import END, VOCABULARY, save_tiny, tiny_tokenizer
from tests.training.small_training import SETTINGS

SYSTEM = {"role": "system", "content": "be brief"}
ROWS: list[dict[str, Any]] = [
    {"question": "how many pens?", "answer": "7"},
    {"instruction": "add them", "input": "1 and 2", "output": "3"},
    {"messages": [SYSTEM, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "gold"}]},
    {"prompt": "is it so", "completion": "no", "answer": "no"},
]
ENDS = frozenset(range(100, 257))  # some answers of a random model end with these, others are cut
SHORT: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture(autouse=True)
def in_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers compute, with and without our kernels, in fp32."""
    monkeypatch.setattr(written, "native_backend", lambda *_: None)
    monkeypatch.setattr(written, "resolved_precision", lambda *_: "fp32")


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some answers end."""
    monkeypatch.setattr(written, "end_tokens", lambda *_: ENDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return saved(tmp_path / "prompts.jsonl", ROWS)


def saved(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def rows_of(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def record_of(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.with_name("self_text.json").read_text())
    return record


def author_of(tokenizer: Any, **settings: Any) -> TextAuthor:
    text_settings = TextSettings(decoding_by(tokenizer), frozenset({256}), 256)
    return TextAuthor(tokenizer, text_settings, WriteConfig(**settings))


def likeliest(model: Path, prompt: str) -> tuple[str, bool]:
    """Return the greedy answer to a rendered prompt, by whole forwards, and whether it was cut."""
    tokenizer = tiny_tokenizer()
    network = load_model(model)
    ids = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < 6:
        with torch.no_grad():
            token = int(network(torch.tensor([[*ids, *new]])).logits[0, -1].argmax())
        if token in ENDS:
            return str(tokenizer.decode(new)).strip(), False
        new.append(token)
    return str(tokenizer.decode(new)).strip(), True


def test_the_rows_hold_the_tokens_asked_for_and_depend_on_their_number_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(model, tmp_path / "text", tokens=60, **SHORT)
    rows = rows_of(file)
    counts = [row["tokens"] for row in rows]
    assert sum(counts) >= 60 > sum(counts[:-1])
    assert record_of(file)["num_tokens"] == sum(counts)
    chats = [row for row in rows if "messages" in row]
    assert 0 < len(chats) == record_of(file)["num_chats"] < len(rows)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in chats)
    tokenizer = tiny_tokenizer()
    assert all(len(tokenizer(row["text"])["input_ids"]) == row["tokens"] for row in rows if "text" in row)
    assert sum(batch.numel() for batch in calibration_batches(str(file), tokenizer, 3, 16, 2, 0).batches) == 48
    monkeypatch.setattr(written, "TransformersBackend", partial(TransformersBackend, max_sequences=1))
    assert write(model, tmp_path / "alone", tokens=60, **SHORT).read_bytes() == file.read_bytes()


@pytest.mark.usefixtures("ending")
def test_an_answer_is_the_likeliest_text_behind_the_prompt_in_the_models_template(
    model: Path, prompts: str, tmp_path: Path
) -> None:
    rendered = [
        f"<user>how many pens?\n{TO_REASON}{END}<assistant>",
        f"<user>add them\n\n1 and 2\n{TO_REASON}{END}<assistant>",
        f"<system>be brief{END}<user>hello{END}<assistant>",
        f"<user>is it so{END}<assistant>",
    ]
    expected = [likeliest(model, prompt) for prompt in rendered]
    file = write(model, tmp_path / "out", prompts, **SHORT)
    known = {row["row"]: row for row in rows_of(file)}
    for number, (text, is_cut) in enumerate(expected, start=1):
        assert (number in known) == bool(text)
        if text:
            assert known[number]["messages"][-1] == {"role": "assistant", "content": text}
            assert known[number]["cut"] is is_cut
    assert record_of(file)["num_cut"] == sum(is_cut for _, is_cut in expected)
    assert record_of(file)["num_empty"] == sum(not text for text, _ in expected)
    assert known[3]["messages"][0] == SYSTEM
    assert (known[1]["question"], known[1]["answer"]) == ("how many pens?", "7")
    examples = load_examples(str(file), "question", tiny_tokenizer())
    assert len(tokenize_all(examples, tiny_tokenizer(), 200)) == len(known)


def test_a_package_answers_in_the_form_of_its_training(model: Path, prompts: str, tmp_path: Path) -> None:
    trained = shutil.copytree(model, tmp_path / "trained")
    write_json(trained / "merged.json", {"template": "question", "form": {"rows": "instruction"}})
    asked = saved(tmp_path / "rows.jsonl", [ROWS[3], ROWS[0]])
    expected = rows_of(write(trained, tmp_path / "model", asked, **SHORT))
    assert {row["prompt"] for row in expected} == {"is it so", "Question: how many pens?\nAnswer:"}
    package = export_adapter(trained, tmp_path / "package", format="package", dtype="fp32")
    write_json(package / "package.json", json.loads((package / "package.json").read_text()))
    assert [row["completion"] for row in rows_of(write(package, tmp_path / "out", asked, **SHORT))] == [
        row["completion"] for row in expected
    ]


@pytest.mark.parametrize("kind", ["texts", "answers"])
def test_a_killed_call_continues_with_the_same_bytes(
    kind: str, model: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prompts if kind == "answers" else None
    options = {**SHORT, **({} if source else {"tokens": 60})}
    whole = write(model, tmp_path / "whole", source, **options)
    append, kept = journal.append_row, list[int]()

    def failing(path: Path, row: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(row["number"])
        append(path, row)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "append_row", failing)
        with pytest.raises(KeyboardInterrupt):
            write(model, tmp_path / "out", source, **options)
    assert not (tmp_path / "out").exists()
    with (partial_folder(tmp_path / "out") / "written.jsonl").open("a") as file:
        file.write('{"number": 3, "tok')  # a kill while a line was written
    with pytest.raises(InputError, match="max_new_tokens was 6"):
        write(model, tmp_path / "out", source, **{**options, "max_new_tokens": 7})
    assert write(model, tmp_path / "out", source, **options).read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("ending")
def test_right_answers_are_kept_and_no_right_one_is_an_error(model: Path, tmp_path: Path) -> None:
    """The right answers are texts that the model is known to give."""
    drawn: dict[str, Any] = {"max_new_tokens": 2, "temperature": 1.0, "samples": 24}
    plain = saved(tmp_path / "plain.jsonl", [{"prompt": "a"}] * 2)
    known = rows_of(write(model, tmp_path / "all", plain, **drawn))
    text_of = {row["number"]: row["messages"][-1]["content"] for row in known}
    ended = next(text_of[row["number"]] for row in known if row["row"] == 1 and not row["cut"])
    source = saved(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": ended}, {"prompt": "a", "answer": "no way"}])
    file = write(model, tmp_path / "out", source, keep="right", **drawn)
    right = [row["number"] for row in known if row["row"] == 1 and not row["cut"] and text_of[row["number"]] == ended]
    assert [row["number"] for row in rows_of(file)] == right
    assert (record_of(file)["num_right"], record_of(file)["num_answers"]) == (len(right), 48)
    wrong = saved(tmp_path / "wrong.jsonl", [{"prompt": "a", "answer": "no way"}])
    with pytest.raises(InputError, match="at least one of 24 answers must be right, none is"):
        write(model, tmp_path / "none", wrong, keep="right", **drawn)


def test_a_source_behind_self_is_written_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saved(tmp_path / "asked.jsonl", [{"q": row["question"], **row} for row in ROWS[:1]])
    source, columns = text_source(f"self:{asked}", model, 40, 0, {"prompt": "q"}, **SHORT)
    assert columns == {}
    assert [row["messages"][0]["content"] for row in rows_of(source)] == ["how many pens?"]
    plain = text_source("self", model, 8, 0, **SHORT)
    assert text_source("self", model, 8, 1, **SHORT) != plain
    monkeypatch.setattr(written, "written_rows", None)
    assert text_source("self", model, 8, 0, **SHORT) == plain
    assert text_source(f"self:{asked}", model, 40, 0, {"prompt": "q"}, **SHORT) == (source, {})
    assert text_source("own.txt", model, 40, 0, {"prompt": "a"}) == ("own.txt", {"prompt": "a"})


def test_right_answers_are_learnt_where_every_row_has_one(
    model: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "text_source", lambda *_, keep, **_k: (keep, {}))
    answered = saved(tmp_path / "rows.jsonl", [ROWS[0], ROWS[3]])
    assert answers_source(f"self:{prompts}", "model", 0)[0] == "ended"
    assert answers_source(f"self:{answered}", "model", 0)[0] == "right"
    learnt = write(model, tmp_path / "out", prompts, **SHORT)
    monkeypatch.setattr("shears.adapt.train.answers_source", lambda *_, **__: (str(learnt), {}))
    settings = {**SETTINGS, "max_steps": 3, "max_length": 200}
    folder = train(model, tmp_path / "adapter", data=f"self:{prompts}", **settings)
    record = json.loads((folder / "search_space.json").read_text())
    assert record["config"]["data"] == f"self:{prompts}"
    assert record["data_sha256"] == file_fingerprint(Path(prompts))


class Silent(TransformersBackend):
    """Ends every text with its first token."""

    def prefill(self, sequence: int, tokens: Any) -> Any:
        super().prefill(sequence, tokens)
        return np.where(np.arange(VOCABULARY) == 256, 0, -100).astype(np.float32)


def test_a_model_that_writes_nothing_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must write text, this one ends every text at once"):
        written_rows(author_of(tiny_tokenizer()), Silent(load_model(model)), 1000, tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [SYSTEM]}, "row 2 of .*: a prompt must have a user turn"),
        ({"sentence": "x"}, "row 2 of .*: a prompt must be text in one of the columns .*, got sentence; name yours"),
        ({"prompt": "  "}, "row 2 of .*: a prompt must be text in one of the columns"),
        (
            {"prompt": "long " * 60, "answer": "1"},
            "a prompt must be shorter than the model's context of 256 tokens, got 3.. in row 2",
        ),
        (
            {"prompt": "a", "choices": ["x", "y"], "answer": "z"},
            "row 2 of .*: a row's answer must be one of its choices",
        ),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(model: Path, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    source = saved(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(InputError, match=message):
        write(model, tmp_path / "out", source, keep="right", **SHORT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--keep right", "write.keep needs prompts, got none; add --prompts FILE"),
        ("--temperature 0", "write.temperature must be above 0 to write texts"),
        ("--prompts rows.jsonl --samples 2", "several samples per prompt need a temperature above 0, got 2"),
        ("--tokens 2MB", "write.tokens"),
    ],
)
def test_options_that_do_not_suit_are_refused(
    model: Path, tmp_path: Path, call: Call, words: str, message: str
) -> None:
    code, _, errors = call("write", model, tmp_path / "out", *words.split())
    assert code == 2
    assert message in errors
    assert not list(tmp_path.iterdir())
