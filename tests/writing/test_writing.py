"""Text that a model writes: from its own distribution, a function of its number, kept and resumed."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shears.config import WriteConfig
from shears.config.resolve import build
from shears.data.calibration import calibration_batches
from shears.errors import InputError
from shears.models.load import load_model
from shears.models.ref import resolve
from shears.models.tokenizers import load_tokenizer
from shears.records.folders import partial_folder
from shears.records.journal import append_row
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.sparsity.sparsify import sparsify
from shears.writing import stage, writer
from shears.writing.author import TextAuthor, first_words, user_turn_of_template
from shears.writing.stage import write, written_text
from shears.writing.writer import Plan, TextWriter
from tests.tiny import END, VOCABULARY, save_tiny, tiny_tokenizer

ALL = Plan(range(1000), 1000, bool)
SHORT: dict[str, Any] = {"max_new_tokens": 8}


@pytest.fixture(autouse=True, scope="module")
def no_native_decoder() -> Iterator[None]:
    """Let transformers compute, with and without our kernels, in fp32."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "native_backend", lambda *_: None)
        patched.setattr(stage, "resolved_precision", lambda *_: "fp32")
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("self") / "model")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed text of 60 tokens, with no other beside it."""
    return write(model, tmp_path_factory.mktemp("whole") / "text", tokens=60, **SHORT)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_token_is_drawn_from_the_models_softmax(model: Path) -> None:
    """The oracle draws by the cumulative sum of a softmax in float64 over the logits of a whole forward."""
    settings = build(WriteConfig, "write", {**SHORT, "temperature": 0.7})
    network = load_model(model)
    author = TextAuthor(load_tokenizer(resolve(model)), frozenset({256}), 256, settings)
    text = author.begin(0)
    assert len(text.prompt) == 1
    seed = random.Random("self text 0 0 text").getrandbits(63)
    numbers = np.random.default_rng(seed)
    backend = TransformersBackend(network)
    text.accept(backend.prefill(0, text.prompt))
    while not text.done:
        text.accept(backend.step([0], text.tokens[-1:])[0])
    for place in range(len(text.tokens)):
        with torch.no_grad():
            logits = network(torch.tensor([[*text.prompt, *text.tokens[:place]]])).logits[0, -1].double() / 0.7
        cumulative = torch.softmax(logits, 0).cumsum(0).numpy()
        assert text.tokens[place] == int(np.searchsorted(cumulative, numbers.random(), side="right"))
    assert len(text.tokens) == 8 or text.tokens[-1] == 256


def test_the_rows_hold_the_tokens_asked_for_and_no_more_texts_than_that_takes(whole: Path) -> None:
    rows = rows_of(whole)
    record = json.loads((whole.parent / "self_text.json").read_text())
    counts = [row["tokens"] for row in rows]
    assert sum(counts) >= 60 > sum(counts[:-1])
    assert record["num_tokens"] == sum(counts)
    chats = [row for row in rows if "messages" in row]
    assert 0 < len(chats) == record["num_chats"] < len(rows)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in chats)
    assert all(turn["content"] for row in chats for turn in row["messages"])
    tokenizer = tiny_tokenizer()
    assert all(len(tokenizer(row["text"])["input_ids"]) == row["tokens"] for row in rows if "text" in row)
    assert all(row["text"][0].isalpha() for row in rows if "text" in row)
    assert calibration_batches(str(whole), tokenizer, 3, 16, 2, 0).num_tokens == 48


def test_a_text_depends_on_its_number_alone(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(model, tmp_path / "other" / "text", tokens=8, seed=1, **SHORT)
    assert not whole.read_bytes().startswith(other.read_bytes())
    monkeypatch.setattr(stage, "TransformersBackend", partial(TransformersBackend, max_sequences=1))
    alone = write(model, tmp_path / "alone" / "text", tokens=60, **SHORT)
    assert alone.read_bytes() == whole.read_bytes()


def test_an_interrupted_text_continues_and_a_longer_one_begins_with_it(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = append_row
    kept: list[int] = []

    def failing(path: Path, row: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(row["number"])
        keep(path, row)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "append_row", failing)
        with pytest.raises(KeyboardInterrupt):
            write(model, tmp_path / "short", tokens=36, **SHORT)
    journal = partial_folder(tmp_path / "short") / "written.jsonl"
    with journal.open("a") as file:
        file.write('{"number": 99, "tok')  # a kill while a line was written
    begun: list[int] = []
    begin = TextAuthor.begin

    def noted(author: TextAuthor, number: int) -> Any:
        begun.append(number)
        return begin(author, number)

    monkeypatch.setattr(TextAuthor, "begin", noted)
    short = write(model, tmp_path / "short", tokens=36, **SHORT)
    assert not set(kept) & set(begun)
    longer = write(model, tmp_path / "longer", tokens=60, **SHORT)
    assert longer.read_bytes() == whole.read_bytes()
    assert whole.read_bytes().startswith(short.read_bytes())


def test_the_cache_knows_models_and_settings_apart(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = written_text(model, 8, 0, **SHORT)
    assert written_text(model, 8, 1, **SHORT).parent.parent != first.parent.parent
    other = save_tiny(tmp_path / "other", seed=1)
    assert written_text(other, 8, 0, **SHORT).parent.parent != first.parent.parent
    monkeypatch.setattr(stage, "_rows", None)
    assert written_text(model, 8, 0, **SHORT) == first


def test_without_a_template_every_text_is_plain(model: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert user_turn_of_template(tokenizer) == ("<user>", END)
    tokenizer.chat_template = None
    assert user_turn_of_template(tokenizer) is None
    author = TextAuthor(tokenizer, frozenset({256}), 256, build(WriteConfig, "write", {"chats": 1.0}))
    assert not author.begin(0).is_chat
    words = tokenizer.batch_decode([[token] for token in first_words(tokenizer)])
    assert {"a", "Z"} <= set(words)
    assert not {" ", "1", END} & set(words)


def test_a_turn_ends_where_a_closing_of_plain_text_was_written() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n--\n{% endfor %}"
    author = TextAuthor(tokenizer, frozenset({256}), 256, build(WriteConfig, "write", {"chats": 1.0}))
    user = author.begin(0)
    user.tokens = tokenizer("what is it?\n--\nassistant: no")["input_ids"]
    answer = author.answer(user)
    assert answer is not None
    assert answer.user == "what is it?"
    assert tokenizer.decode(list(answer.prompt)) == "user: what is it?\n--\n"
    user.tokens = tokenizer("\n--\n")["input_ids"]
    assert author.answer(user) is None


class Silent(TransformersBackend):
    """Ends every text with its first token."""

    def prefill(self, sequence: int, tokens: Any) -> Any:
        return np.where(np.arange(VOCABULARY) == 256, 0, -100).astype(np.float32) + 0 * super().prefill(
            sequence, tokens
        )


def test_a_model_that_writes_nothing_is_refused(model: Path) -> None:
    author = TextAuthor(tiny_tokenizer(), frozenset({256}), 256, build(WriteConfig, "write", SHORT))
    with pytest.raises(InputError, match="must write text, this one ends every text at once"):
        TextWriter(author, Silent(load_model(model)), ALL, {}, lambda row, text: None).run()


def test_sparsify_lets_the_model_write_its_calibration_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"num_samples": 2, "sequence_length": 16, "calibration": "self"}
    folder = sparsify(model, tmp_path / "sparse", **small)
    record = json.loads((folder / "sparsity.json").read_text())
    assert record["config"]["calibration"] == "self"
    assert len(record["calibration_sha256"]) == 64
    monkeypatch.setattr(stage, "_rows", None)
    again = json.loads((sparsify(model, tmp_path / "again", **small) / "sparsity.json").read_text())
    assert again["fingerprint"] == record["fingerprint"]
    assert again["calibration_sha256"] == record["calibration_sha256"]


@pytest.mark.parametrize(("text", "number"), [("64k", 64_000), ("1.5M", 1_500_000), ("300", 300), (7, 7)])
def test_a_count_may_have_a_unit(text: str | int, number: int) -> None:
    assert build(WriteConfig, "write", {"tokens": text}).tokens == number


def test_a_count_of_another_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"write\.tokens must be"):
        build(WriteConfig, "write", {"tokens": "2MB"})


@pytest.mark.parametrize("damage", ["[1]", "{}", '{"a', "", "null", '"text"'])
def test_a_damaged_or_unrelated_record_beside_is_no_obstacle(
    model: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "self_text.json").write_text(damage)
    assert write(model, tmp_path / "text", tokens=60, **SHORT).read_bytes() == whole.read_bytes()


def test_a_text_that_changed_is_not_taken_over(
    model: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write(model, tmp_path / "first", tokens=20, **SHORT)
    first.write_text('{"number": 0, "tokens": 9999, "text": "another"}\n')
    with caplog.at_level("WARNING", "shears"):
        assert write(model, tmp_path / "text", tokens=60, **SHORT).read_bytes() == whole.read_bytes()
    assert f"not taken over: {first} must be the one this was made from" in caplog.text


@pytest.mark.parametrize(
    "line",
    ["\0", "{}", "[]", "7", '{"number": 0}', '{"number": "0", "tokens": 9}', '{"number": 0, "tokens": 9}'],
)
def test_a_damaged_line_of_the_journal_is_written_anew(
    model: Path, whole: Path, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def stop_behind_a_row(path: Path, row: object) -> None:
        append_row(path, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "append_row", stop_behind_a_row)
        with pytest.raises(KeyboardInterrupt):
            write(model, tmp_path / "text", tokens=60, **SHORT)
    (partial_folder(tmp_path / "text") / "written.jsonl").write_text(f"{line}\n")
    assert write(model, tmp_path / "text", tokens=60, **SHORT).read_bytes() == whole.read_bytes()
