"""Sources of calibration: chats, training data, hub sets, saved folders."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from shears.config.fields import TemplateName
from shears.data.calibration import calibration_batches, text_tokens
from shears.data.examples import load_examples, tokenize_all
from shears.errors import InputError
from tests.data.test_calibration import TOKENIZER, calibrate, sequences_of
from tests.tiny import tiny_tokenizer

Rows = Sequence[dict[str, Any]]
TEXTS: Rows = [{"text": f"row {number} of some text"} for number in range(20)]
CHATS: Rows = [
    {"messages": [{"role": "user", "content": f"{number}+1?"}, {"role": "assistant", "content": str(number + 1)}] * 2}
    for number in range(20)
]
LAST_TURN = tiny_tokenizer()  # a template that closes the assistant's turns only
LAST_TURN.chat_template = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
)


def _jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _documents(source: Path | str, num_tokens: int, **options: Any) -> list[str]:
    """The texts between the ends of sequence of a calibration of that many tokens, a token a sequence."""
    calibration = calibrate(source, num_samples=num_tokens, sequence_length=1, **options)
    return str(TOKENIZER.decode([token for row in sequences_of(calibration) for token in row])).split("<|end|>")


def test_chats_are_what_the_chat_template_renders(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "chat.jsonl", CHATS[:1])
    rendered = str(TOKENIZER.apply_chat_template(list(CHATS[0]["messages"]), tokenize=False))
    ids = TOKENIZER(rendered, add_special_tokens=False)["input_ids"]
    assert [row[0] for row in sequences_of(calibrate(path, num_samples=len(ids), sequence_length=1))] == ids
    assert text_tokens(str(path), TOKENIZER) == ids  # no second end behind the template's own


@pytest.mark.parametrize(
    ("turns", "closed"),
    [
        ([{"role": "user", "content": "hi"}], False),
        ([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}], False),
        ([*CHATS[0]["messages"], {"role": "user", "content": "and then?"}], False),
        (CHATS[0]["messages"], True),
    ],
)
def test_a_chat_needs_no_assistant_and_keeps_every_turn(tmp_path: Path, turns: Rows, closed: bool) -> None:
    ids = text_tokens(str(_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}])), LAST_TURN)
    rendered = str(LAST_TURN.apply_chat_template(list(turns), tokenize=False))
    assert rendered.endswith("<|end|>") is closed
    assert str(LAST_TURN.decode(ids)) == (rendered if closed else rendered + "<|end|>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "list of"),
        ([{"content": "hi"}], "list of"),
        ([{"role": "user", "content": ""}], "chat template on these messages cannot be used: no content"),
    ],
)
def test_invalid_messages_are_refused_in_one_line(tmp_path: Path, messages: object, message: str) -> None:
    strict = tiny_tokenizer()
    strict.chat_template = "{% for m in messages %}{{ m.content or raise_exception('no content') }}{% endfor %}"
    path = _jsonl(tmp_path / "chat.jsonl", [{"messages": messages}])
    with pytest.raises(InputError, match=message) as caught:
        text_tokens(str(path), strict)
    assert "\n" not in str(caught.value)


def test_chats_need_a_chat_template(tmp_path: Path) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match="chat template, got one without; use the column text"):
        text_tokens(str(_jsonl(tmp_path / "chat.jsonl", CHATS)), bare)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "Question: 1+1?", "completion": " 2"}, "Question: 1+1? 2"),
        ({"instruction": "Add", "input": "1 and 1", "output": "2"}, "Question: Add\n1 and 1\nAnswer: 2"),
        ({"text": "a text of its own", "prompt": "left", "completion": "out"}, "a text of its own"),
    ],
)
def test_training_data_is_calibrated_on_as_it_is_trained_on(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    path = _jsonl(tmp_path / "train.jsonl", [row])
    assert _documents(path, len(text) + 1, trained="question") == [text, ""]


@pytest.mark.parametrize(
    ("trained", "has_chat", "template"),
    [
        ("chat", True, "chat"),
        ("question", True, "question"),
        ("alpaca", True, "question"),
        (None, True, "chat"),
        (None, False, "question"),
    ],
)
def test_instructions_are_calibrated_on_as_the_model_is_trained_or_else_asked(
    tmp_path: Path, trained: TemplateName | None, has_chat: bool, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokens are those that a training in the template reads; plain text and chats stay as they are."""
    tokenizer = tiny_tokenizer()
    if not has_chat:
        tokenizer.chat_template = None
    rows = [{"instruction": "Add", "output": "two", "system": "be kind"}, {"instruction": "Say", "output": "yes"}]
    path = str(_jsonl(tmp_path / "rows.jsonl", rows))
    read = tokenize_all(load_examples(path, template, tokenizer), tokenizer, 512)
    count = sum(len(row.input_ids) for row in read)
    with caplog.at_level(logging.INFO, "shears"):
        drawn = calibration_batches(path, tokenizer, count, 1, 1, 0, trained=trained)
    tokens = [int(token) for batch in drawn.batches for token in batch.flatten()]
    orders = [[token for row in order for token in row.input_ids] for order in (read, read[::-1])]
    assert tokens in orders
    told = [line for line in caplog.messages if "instructions of" in line]
    assert told == [f"instructions of {path} are rendered in the template {template}"]


def test_the_data_of_a_training_is_a_source_whatever_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}+1=", "completion": str(number + 1)} for number in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"{n}+1=,{n + 1}\n" for n in range(30)))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    calibrations = [calibrate(_jsonl(tmp_path / "a.jsonl", rows))]
    calibrations += [calibrate(tmp_path / f"a.{ending}") for ending in ("json", "csv", "parquet")]
    assert len({calibration.fingerprint for calibration in calibrations}) == 1


def test_packing_takes_as_many_rows_as_it_needs_each_once(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", TEXTS)
    total = len(text_tokens(str(path), TOKENIZER))
    documents = _documents(path, total)
    assert sorted(documents) == sorted([*(row["text"] for row in TEXTS), ""])
    assert documents[:-1] != [row["text"] for row in TEXTS]  # drawn, not the file's order


def test_rows_without_text_are_skipped(tmp_path: Path) -> None:
    some = _jsonl(tmp_path / "some.jsonl", TEXTS[:3])
    gaps = _jsonl(tmp_path / "gaps.jsonl", [{"text": ""}, TEXTS[0], {"text": None, "label": 1}, *TEXTS[1:3]])
    assert text_tokens(str(gaps), TOKENIZER) == text_tokens(str(some), TOKENIZER)
    assert "" not in _documents(gaps, len(text_tokens(str(gaps), TOKENIZER)))[:-1]


@pytest.mark.parametrize(("num_samples", "warned"), [(8, True), (9, False)])
def test_eight_sequences_of_256_tokens_work_with_a_warning(
    caplog: pytest.LogCaptureFixture, num_samples: int, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        calibration = calibrate("arithmetic:train", num_samples=num_samples, sequence_length=256)
    assert calibration.num_tokens == num_samples * 256
    assert ("calibration tokens; with 2048 or fewer" in caplog.text) is warned


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of `datasets`, with the set somebody/some-texts that was loaded from the hub before."""
    rows = _jsonl(tmp_path / "texts.jsonl", TEXTS)
    datasets.load_dataset("json", data_files={"train": str(rows)}, cache_dir=str(tmp_path))
    built = next((tmp_path / "json").glob("*/*/*/dataset_info.json")).parent
    cache = tmp_path / "hub"
    place = cache / "somebody___some-texts" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(built, place)
    info = json.loads((place / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "some-texts"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    (place / "json-train.arrow").rename(place / "some-texts-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["somebody/some-texts", "somebody/some-texts:train", "somebody/some-texts/default"])
def test_a_hub_set_in_the_cache_needs_no_network(tmp_path: Path, name: str) -> None:
    assert calibrate(name).fingerprint == calibrate(_jsonl(tmp_path / "same.jsonl", TEXTS)).fingerprint


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["somebody/other-texts", "somebody/some-texts:test", "somebody/some-texts/other"])
def test_an_unreachable_hub_set_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"data {name} cannot be used") as caught:
        calibrate(name)
    assert "\n" not in str(caught.value)
