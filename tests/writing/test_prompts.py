"""Answers of a model to prompts: its own template, its likeliest or drawn text, kept by the rows' rules."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shears.adapt.train import train
from shears.config import SamplingConfig, WriteConfig
from shears.data.calibration import calibration_batches
from shears.data.examples import load_examples, rows_fingerprint, tokenize_all
from shears.data.prompts import TO_REASON
from shears.errors import InputError
from shears.models.load import load_model
from shears.models.ref import ModelRef
from shears.models.tokenizers import end_tokens
from shears.records.folders import partial_folder
from shears.records.journal import append_row
from shears.records.paths import file_fingerprint
from shears.runtime import kernels_available
from shears.runtime.choice import Wanted, native_backend
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.writing import stage, writer
from shears.writing.prompts import PromptAnswer, asked_turns, read_prompts, respondent_of
from shears.writing.stage import answers_source, text_source, write
from tests.conftest import Call
from tests.tiny import END, save_tiny, tiny_tokenizer
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


@pytest.fixture(autouse=True, scope="module")
def no_native_decoder() -> Iterator[None]:
    """Let transformers compute, with and without our kernels, in fp32; let answers end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "native_backend", lambda *_: None)
        patched.setattr(stage, "resolved_precision", lambda *_: "fp32")
        patched.setattr(stage, "end_tokens", lambda *_: ENDS)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "model")


def saved(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("prompts") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def whole(model: Path, prompts: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All greedy answers, with no other beside them."""
    return write(model, tmp_path_factory.mktemp("whole") / "out", prompts, **SHORT)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def record_of(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.with_name("self_text.json").read_text())
    return record


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


def test_an_answer_is_the_likeliest_text_behind_the_prompt_in_the_models_template(
    model: Path, prompts: str, whole: Path
) -> None:
    rendered = [
        f"<user>how many pens?\n{TO_REASON}{END}<assistant>",
        f"<user>add them\n\n1 and 2\n{TO_REASON}{END}<assistant>",
        f"<system>be brief{END}<user>hello{END}<assistant>",
        f"<user>is it so{END}<assistant>",
    ]
    tokenizer = tiny_tokenizer()
    asked = respondent_of(read_prompts(prompts, WriteConfig()), tokenizer, ENDS, 256, SamplingConfig())
    assert [tokenizer.decode(list(ids)) for ids in asked.ids] == rendered
    expected = [likeliest(model, prompt) for prompt in rendered]
    known = {row["row"]: row for row in rows_of(whole)}
    for number, (text, is_cut) in enumerate(expected, start=1):
        if text:
            assert known[number]["messages"][-1] == {"role": "assistant", "content": text}
            assert known[number]["cut"] is is_cut
        else:
            assert number not in known
    record = record_of(whole)
    assert record["num_cut"] == sum(is_cut for _, is_cut in expected)
    assert record["num_empty"] == sum(not text for text, _ in expected)
    assert record["num_answers"] == record["num_prompts"] == 4
    assert known[3]["messages"][0] == SYSTEM
    assert known[1]["question"] == "how many pens?"
    assert known[1]["answer"] == "7"


def test_train_and_calibration_read_the_rows(whole: Path) -> None:
    tokenizer = tiny_tokenizer()
    examples = load_examples(str(whole), "question", tokenizer)
    assert len(tokenize_all(examples, tokenizer, 200)) == len(rows_of(whole))
    assert calibration_batches(str(whole), tokenizer, 2, 16, 2, 0).num_tokens == 32


def test_answers_depend_on_their_number_alone_and_are_taken_over(
    model: Path, prompts: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {**SHORT, "temperature": 1.0}
    three = rows_of(write(model, tmp_path / "a" / "three", prompts, samples=3, **drawn))
    with monkeypatch.context() as patched:
        patched.setattr(stage, "TransformersBackend", partial(TransformersBackend, max_sequences=1))
        two = write(model, tmp_path / "b" / "two", prompts, samples=2, limit=3, **drawn)
        assert rows_of(two) == [row for row in three if row["sample"] < 3 and row["row"] < 4]
        assert write(model, tmp_path / "c" / "greedy", prompts, **SHORT).read_bytes() == whole.read_bytes()
    assert len({row["messages"][-1]["content"] for row in three}) > len(ROWS)
    begun: list[int] = []
    init = PromptAnswer.__init__

    def noted(answer: PromptAnswer, number: int, *rest: Any) -> None:
        begun.append(number)
        init(answer, number, *rest)

    monkeypatch.setattr(PromptAnswer, "__init__", noted)
    assert rows_of(write(model, tmp_path / "b" / "three", prompts, samples=3, **drawn)) == three
    assert {0, 1, 2, 4, 5, 6}.isdisjoint(begun)


def test_a_killed_call_continues_with_the_same_bytes(
    model: Path, prompts: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def failing(path: Path, row: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(row["number"])
        append_row(path, row)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "append_row", failing)
        with pytest.raises(KeyboardInterrupt):
            write(model, tmp_path / "out", prompts, **SHORT)
    assert not (tmp_path / "out").exists()
    with (partial_folder(tmp_path / "out") / "written.jsonl").open("a") as file:
        file.write('{"number": 3, "tok')  # a kill while a line was written
    other = saved(tmp_path / "other.jsonl", ROWS[:3])
    with pytest.raises(InputError, match="prompts_sha256 was"):
        write(model, tmp_path / "out", other, **SHORT)
    assert write(model, tmp_path / "out", prompts, **SHORT).read_bytes() == whole.read_bytes()


def test_right_answers_are_kept_and_the_others_left_out(model: Path, tmp_path: Path) -> None:
    """The right answers are texts that the model is known to give; one of them was cut, and so is not right."""
    drawn = {"max_new_tokens": 2, "temperature": 1.0, "samples": 24}
    plain = saved(tmp_path / "plain.jsonl", [{"prompt": "a"}] * 2)
    known = rows_of(write(model, tmp_path / "all" / "out", plain, **drawn))
    said = [(row["row"], row["cut"], row["messages"][-1]["content"]) for row in known]
    ended = next(text for row, is_cut, text in said if row == 1 and not is_cut and text.isalpha())
    cut = next(text for row, is_cut, text in said if row == 2 and is_cut and text.isalpha())
    source = saved(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": ended}, {"prompt": "a", "answer": cut}])
    file = write(model, tmp_path / "out", source, keep="right", **drawn)
    right = [each in ((1, False, ended), (2, False, cut)) for each in said]
    kept = [row["number"] for row, is_right in zip(known, right, strict=True) if is_right]
    assert [row["number"] for row in rows_of(file)] == kept
    left = {row["number"]: row["right"] for row in rows_of(file.with_name("left_out.jsonl")) if row["tokens"]}
    assert left == {row["number"]: False for row in known if row["number"] not in kept}
    record = record_of(file)
    assert (record["num_right"], record["num_answers"], record["num_kept"]) == (len(kept), 48, len(kept))
    others = rows_of(write(model, tmp_path / "ended", source, keep="ended", **drawn))
    assert [row["number"] for row in others] == [row["number"] for row in known if not row["cut"]]


def test_no_right_answer_is_an_error_whose_answers_are_not_lost(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "something else"}])
    with pytest.raises(InputError, match="at least one answer must be kept, got 1 answers, none of which is right"):
        write(model, tmp_path / "out", source, keep="right", **SHORT)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(stage, "_open", None)
    assert write(model, tmp_path / "out", source, **SHORT).is_file()


def test_an_answer_that_no_rule_reads_is_named(model: Path, tmp_path: Path) -> None:
    source = saved(tmp_path / "rows.jsonl", [{"prompt": "a", "choices": ["x", "y"], "answer": "z"}])
    with pytest.raises(InputError, match=r"row 1 of .*: a row's answer must be one of its choices, got 'z'"):
        write(model, tmp_path / "out", source, keep="right", **SHORT)


def test_a_number_is_asked_for_with_reasons() -> None:
    asked = asked_turns({"question": "2 and 2?", "answer": "It is 2+2. #### 4"})
    assert asked[0]["content"] == f"2 and 2?\n{TO_REASON}"
    assert asked_turns({"prompt": "2 and 2?", "answer": "4"}) == [{"role": "user", "content": "2 and 2?"}]


def test_fewer_tokens_take_as_few_answers_as_hold_them(model: Path, prompts: str, tmp_path: Path) -> None:
    file = write(model, tmp_path / "out", prompts, tokens=40, **SHORT)
    counts = [row["tokens"] for row in rows_of(file)]
    assert sum(counts) >= 40 > sum(counts) - max(counts)
    assert len(counts) < 4


def test_a_source_behind_self_is_answered_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saved(tmp_path / "asked.jsonl", [{"q": row["question"], **row} for row in ROWS[:1]])
    source, columns = text_source(f"self:{asked}", model, 40, 0, {"prompt": "q"}, **SHORT)
    assert columns == {}
    assert [row["messages"][0]["content"] for row in rows_of(Path(source))] == ["how many pens?"]
    monkeypatch.setattr(stage, "_rows", None)
    assert text_source(f"self:{asked}", model, 40, 0, {"prompt": "q"}, **SHORT) == (source, {})
    assert text_source("own.txt", model, 40, 0, {"prompt": "a"}) == ("own.txt", {"prompt": "a"})


@pytest.mark.skipif(not kernels_available(), reason="the kernels were not built")
def test_the_native_decoder_answers_alike_in_any_company(
    model: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_most(most: int, network: nn.Module, wanted: Wanted) -> object:
        return native_backend(network, replace(wanted, backend="native", precision="bf16", max_sequences=most))

    drawn = {"samples": 5, "temperature": 1.0, "max_new_tokens": 24}
    files = []
    for most in (1, 3, 16):
        monkeypatch.setattr(stage, "native_backend", partial(at_most, most))
        files.append(write(model, tmp_path / str(most) / "out", prompts, **drawn).read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.slow
def test_a_real_model_answers_alike_in_any_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "end_tokens", end_tokens)
    said = []
    for most in (16, 5):
        wanted = partial(Wanted, backend="native", max_sequences=most)
        monkeypatch.setattr(stage, "Wanted", wanted)
        monkeypatch.setattr(stage, "native_backend", native_backend)
        file = write("smollm2-135m", tmp_path / str(most) / "out", "arithmetic:test", limit=16, max_new_tokens=64)
        said.append(rows_of(file))
    assert said[0] == said[1]


def test_train_learns_answers_of_the_model_and_records_their_prompts(
    model: Path, prompts: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: list[Path] = []

    def answered(source: str, writer: ModelRef, seed: int, columns: Any) -> tuple[str, dict[str, str]]:
        assert (source, seed, columns) == (f"self:{prompts}", SETTINGS.get("seed", 0), {})
        writers.append(writer.folder)
        return str(whole), {}

    monkeypatch.setattr("shears.adapt.train.answers_source", answered)
    settings = {**SETTINGS, "max_steps": 3, "max_length": 200}
    folder = train(model, tmp_path / "adapter", data=f"self:{prompts}", **settings)
    record = json.loads((folder / "search_space.json").read_text())
    assert set(writers) == {model}
    assert record["config"]["data"] == f"self:{prompts}"
    assert record["data_sha256"] == file_fingerprint(Path(prompts))
    examples = load_examples(str(whole), "question", tiny_tokenizer())
    assert record["data_fingerprint"] == rows_fingerprint(tokenize_all(examples, tiny_tokenizer(), 200))


def test_right_answers_are_learnt_where_every_row_has_one(
    prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "text_source", lambda *_, keep: (keep, {}))
    answered = saved(tmp_path / "rows.jsonl", [ROWS[0], ROWS[3]])
    assert answers_source(f"self:{prompts}", "model", 0)[0] == "ended"
    assert answers_source(f"self:{answered}", "model", 0)[0] == "right"
    assert answers_source("rows.jsonl", "model", 0, {"prompt": "q"}) == ("rows.jsonl", {"prompt": "q"})


def test_a_model_without_a_template_continues_plain_prompts(tmp_path: Path, model: Path) -> None:
    plain = save_tiny(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    file = write(plain, tmp_path / "out", saved(tmp_path / "rows.jsonl", [ROWS[3], ROWS[0]]), **SHORT)
    asked = {"is it so": likeliest(plain, "is it so")[0], "Question: how many pens?\nAnswer:": None}
    assert all(row["prompt"] in asked and "messages" not in row for row in rows_of(file))
    with pytest.raises(InputError, match=r"row 1 of .*: messages need a tokenizer with a chat template"):
        write(plain, tmp_path / "chat", saved(tmp_path / "chat.jsonl", [ROWS[2]]), **SHORT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [SYSTEM]}, "row 2 of .*: a prompt must have a turn of a user, got turns of system"),
        ({"sentence": "x"}, "row 2 of .*: a prompt must have one of the columns .*, got sentence; name yours"),
        ({"prompt": "  "}, "row 2 of .*: a prompt must be text, got '  ' in prompt"),
        ({"prompt": "long " * 60}, "row 2 of .*: a prompt must be shorter than the model's context of 256 tokens"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_and_leaves_nothing(
    model: Path, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    source = saved(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(InputError, match=message):
        write(model, tmp_path / "out", source, **SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert write(model, tmp_path / "out", source, limit=1, **SHORT).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--keep right", "write.keep needs prompts, got none; name them with --prompts FILE"),
        ("--temperature 0", "write.temperature must be above 0 for texts"),
        ("--prompts rows.jsonl --samples 2", "several samples of a prompt need a temperature above 0, got 2"),
        ("--prompts none.jsonl", "data must be a file that exists"),
    ],
)
def test_options_that_do_not_suit_are_refused(
    model: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = call("write", model, "out", *words.split())
    assert code == 2
    assert message in errors
    assert not list(tmp_path.iterdir())


def test_a_conversation_is_asked_up_to_its_last_user() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert asked_turns({"messages": [*turns, {"role": "user", "content": "c"}]})[-1]["content"] == "c"
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert asked_turns(shared) == turns[:1]
