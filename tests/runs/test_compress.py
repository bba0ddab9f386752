"""`compress` makes packages until one meets the target, measures them and continues; a plan leaves no trace."""

import copy
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.adapt.train import read_training_rows
from shears.checkpoints.package_file import read_package
from shears.cli import main
from shears.cli.tables import closing_lines
from shears.config import CompressConfig, TrainConfig
from shears.data.examples import IGNORED, Tokenized
from shears.errors import InputError
from shears.models.fetching import convert_gguf
from shears.models.ref import resolve
from shears.records.artifacts import read_object
from shears.records.timing import real_seconds
from shears.runs.candidates import Amounts, Candidate, dtype_of, efforts
from shears.runs.costs import Speeds, measured_speeds
from shears.runs.exam import Exam, longest_answer, split_text
from shears.runtime.forecast import Forecast, forecast_of
from shears.runtime.native import kernels_available
from tests.models.gguf_files import write_gguf
from tests.tiny import save_tiny, tiny_model

SETTINGS: dict[str, Any] = {
    "sparsities": (0.0, 0.5), "dtypes": ("bf16", "int4"), "embedding_dtypes": ("keep", "int4"), "time": "quick",
}  # fmt: skip
SPEEDS = Speeds(load=0.1, forward=1e-4, pruning=1.0, trained=1e-3, question=0.2, answer=0.1)
needs_kernels = pytest.mark.skipif(not kernels_available(), reason="the C++ extension was not built")


@pytest.fixture(scope="module", autouse=True)
def _without_tuning() -> Any:
    """Take the default walks, and weights that need not exceed the cache: seconds become milliseconds."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SHEARS_TUNING", "off")
    for module in ("exam", "compress"):
        patch.setattr(f"shears.runs.{module}.NEW_TOKENS", 4)
        patch.setattr(f"shears.runs.{module}.ROUNDS", 1)
    patch.setattr("shears.runs.compress.measured_speeds", lambda *_: SPEEDS)
    if kernels_available():
        patch.setattr("shears.runtime.native.tuning.weight_bytes", lambda: 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, dense, and text.txt of 2000 characters."""
    folder = tmp_path_factory.mktemp("compress")
    save_tiny(folder / "dense", hidden_size=64, intermediate_size=128)
    generator = random.Random(0)
    (folder / "text.txt").write_text("".join(generator.choice("abcdefgh\n") for _ in range(2000)))
    return folder


@pytest.fixture(scope="module")
def made(inputs: Path) -> tuple[Path, dict[str, Any]]:
    """A folder of `compress` and its record: 50 % zeros in int4 and nothing larger meet the target."""
    out = inputs / "out"
    return out, shears.compress(inputs / "dense", out, target="5.2bits", calibration=inputs / "text.txt", **SETTINGS)


def test_a_gguf_file_is_converted_in_bf16_once(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(inputs / "tiny.gguf")
    there = convert_gguf(file, "bf16")
    monkeypatch.setattr("shears.runs.compress.forecast_of", lambda *_, **__: None)
    monkeypatch.setattr("shears.models.fetching._convert", lambda *_: pytest.fail("converted again"))
    options = {**SETTINGS, "target": "12bits", "calibration": str(inputs / "text.txt")}
    record = shears.compress(file, inputs / "of_file", dry_run=True, **options)
    assert record["base_fingerprint"] == resolve(there).fingerprint
    assert [dtype_of(resolve(model, "bf16")) for model in (file, inputs / "dense")] == ["bf16", "auto"]


def test_the_verb_prints_a_plan_and_writes_nothing(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--target", "9bits", "--calibration", str(inputs / "text.txt"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["shears", "compress", str(inputs / "dense"), str(inputs / "x"), *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("s0-int4", "fewer zeros first", "sparsify", "quick", "thorough"))
    record = shears.compress(
        inputs / "dense", inputs / "x", dry_run=True, target="9bits", calibration=inputs / "text.txt", **SETTINGS
    )
    assert not (inputs / "x").exists()
    meets = [each["bits_per_weight"] <= 9 for each in record["candidates"]]
    assert [each["meets"] for each in record["candidates"]] == meets == sorted(meets, reverse=True)
    assert [each["name"] for each in record["candidates"] if each["meets"]][:2] == ["s0-int4", "s0-int4-int4"]
    assert [stage["name"] for stage in record["stages"]] == ["plan", "dense", "sparsify", "export", "measure"]
    assert sorted(record["efforts"].values()) == list(record["efforts"].values())
    assert record["stages"][3]["disk"] == record["candidates"][0]["bytes"]  # `run --dry-run` says the same number


def test_a_time_makes_what_fits_and_says_what_it_leaves_out(inputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {**SETTINGS, "target": "9bits", "calibration": inputs / "text.txt", "time": "1s"}
    record = shears.compress(inputs / "dense", inputs / "x", dry_run=True, **options)
    assert (record["effort"]["method"], record["effort"]["num_samples"]) == ("wanda", 16)
    assert "to save time, the plan leaves out: 112 of 128 calibration sequences" in caplog.text
    assert record["left_out"][-1].startswith("it still takes about")


def test_the_package_meets_the_target_and_was_measured(made: tuple[Path, dict[str, Any]]) -> None:
    out, record = made
    row = next(row for row in record["measured"] if row["name"] == record["chosen"])
    size = (out / row["package"] / "package.safetensors").stat().st_size
    (planned,) = [each["bytes"] for each in record["candidates"] if each["name"] == record["chosen"]]
    assert planned == pytest.approx(size, rel=5e-4)
    assert (row["bytes"], row["holds"]) == (size, True)
    weights = tiny_model(hidden_size=64, intermediate_size=128).num_parameters()
    assert 8 * size / weights == row["bits_per_weight"] <= 5.2
    assert row["tokens_per_second"] > 0
    length = record["effort"]["sequence_length"]
    measured = shears.evaluate(
        out / row["package"], task="perplexity", data=str(out / "held_out.txt"), sequence_length=length, limit=32
    )
    assert row["loss"] == pytest.approx(math.log(measured.value))
    assert json.loads((out / "compress.json").read_text()) == record
    page = shears.write_report(out).read_text()
    assert "Loss over size, MB" in page
    assert all(each["name"] in page for each in record["candidates"])


def test_the_same_call_continues_and_another_target_is_refused(made: tuple[Path, dict[str, Any]], inputs: Path) -> None:
    out, record = made
    settings = {**SETTINGS, "calibration": inputs / "text.txt"}
    assert shears.compress(inputs / "dense", out, target="5.2bits", **settings) == record
    (out / "compress.json").write_text(json.dumps({**record, "measured": [], "chosen": None}))
    again = shears.compress(inputs / "dense", out, target="5.2bits", **settings)  # as after a kill: the runs are done
    assert [(row["name"], row["loss"]) for row in again["measured"]] == [
        (row["name"], row["loss"]) for row in record["measured"]
    ]
    with pytest.raises(InputError, match="target was '5.2bits' and is now '4bits'"):
        shears.compress(inputs / "dense", out, target="4bits", **settings)


CHANGES: dict[str, Any] = {
    "empty": lambda record: record.clear(),
    "a list as configuration": lambda record: record.update(config=[1]),
    "a candidate without a size": lambda record: record["candidates"][0].pop("bytes"),
    "measured what was not planned": lambda record: record["measured"][0].update(name="../other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_compress_did_not_write_is_refused_in_one_line(
    made: tuple[Path, dict[str, Any]], inputs: Path, tmp_path: Path, change: str
) -> None:
    record = copy.deepcopy(made[1])
    CHANGES[change](record)
    text = json.dumps(record)
    (tmp_path / "compress.json").write_text(text)
    settings = {**SETTINGS, "calibration": inputs / "text.txt"}
    with pytest.raises(InputError) as error:
        shears.compress(inputs / "dense", tmp_path, target="5.2bits", **settings)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "compress.json").read_text() == text


def test_a_package_that_misses_is_followed_by_a_faster_one(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"int8": 60.0, "int4": 90.0}
    monkeypatch.setattr(Forecast, "tokens_per_second", lambda _, s, values, e: speeds.get(values, 10.0))
    measured = iter([30.0, 55.0])
    monkeypatch.setattr(
        "shears.runs.exam.package_decoding", lambda *_: dict.fromkeys(("median", "min", "max"), next(measured))
    )
    settings = {**SETTINGS, "sparsities": (0.5,), "dtypes": ("bf16", "int8", "int4"), "embedding_dtypes": ("keep",)}
    record = shears.compress(
        inputs / "dense", inputs / "fast", target="40tok/s", calibration=inputs / "text.txt", **settings
    )
    assert [(row["name"], row["holds"]) for row in record["measured"]] == [("s50-int8", False), ("s50-int4", True)]
    assert record["chosen"] == "s50-int4"


def test_rows_are_trained_on_with_a_teacher_and_their_last_tenth_is_answered(inputs: Path) -> None:
    """The dense model, the package and dense int4 that was trained alike answer the same rows."""
    rows = [{"ticket": f"t{index}", "fields": json.dumps({"id": index % 3})} for index in range(20)]
    (inputs / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = inputs / "tickets"
    options: dict[str, Any] = {
        "target": "9bits", "data": inputs / "tickets.jsonl", "columns": {"prompt": "ticket", "completion": "fields"},
        "sparsities": "0.5", "dtypes": "int4", "embedding_dtypes": "int8", "time": "thorough",
    }  # fmt: skip
    record = shears.compress(inputs / "dense", out, **options)
    trained = read_object(out / record["chosen"] / "super_adapter" / "search_space.json")
    assert trained["config"]["data"] == str(out / "calibration.jsonl")
    assert trained["config"]["teacher"] == str(out / "teacher")
    package = read_package(out / record["measured"][0]["package"])
    assert {entry.values for entry in package.index.packed.values()} == {"int4"}
    assert not package.adapter()  # it was merged
    asked = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    assert [row["ticket"] for row in asked] == ["t18", "t19"]
    models = (record["dense"], *record["measured"], record["rival"])
    assert [each["answers"]["task"] for each in models] == ["json"] * 3
    assert all(each["answers"]["n"] == 2 == len(each["answers"]["right"]) for each in models)
    assert record["rival"]["name"] == "s0-int4-int8"
    assert shears.compress(inputs / "dense", out, **options) == record
    stages = ["plan", "dense", "teacher", "sparsify", "train", "export", "measure", "rival"]
    assert [stage["name"] for stage in record["stages"]] == stages
    assert {*stages} <= real_seconds(out, record).keys()
    assert "fine-tunes the unpruned model, rounds it to int4" in shears.write_report(out).read_text()
    assert closing_lines(record, "small")[1].endswith(f"chat small/{record['chosen']}/package")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "1bits"}, r"nearest of 8 candidates is s50-int4-int4"),
        ({"calibration": "nowhere.txt"}, "nowhere.txt cannot be read: it does not exist"),
        ({"calibration": "one.jsonl"}, "must have at least two rows"),
        ({"calibration": None, "data": "open.jsonl"}, "row 10 of .*open.jsonl: a row must have an"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    inputs: Path, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    Path("one.jsonl").write_text('{"text": "a"}\n')
    Path("open.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9 + '{"prompt": "a", "completion": ""}\n')
    settings = {**SETTINGS, "target": "9bits", "calibration": "text.txt", **changes}
    with pytest.raises(InputError, match=words):
        shears.compress(inputs / "dense", inputs / "bad", **settings)
    assert not (inputs / "bad").exists()


def test_a_text_is_cut_at_a_line_and_rows_at_a_row(tmp_path: Path) -> None:
    def parts(name: str, content: str, **options: Any) -> list[str]:
        (tmp_path / name).write_text(content)
        settings = CompressConfig(target="1GB", calibration=str(tmp_path / name), **options)
        return [file.read_text() for file in split_text(settings, tmp_path)]

    assert parts("text.txt", "0123456789\n" * 20) == ["0123456789\n" * 18, "0123456789\n" * 2]
    first, rest = parts("rows.jsonl", "".join(f'{{"text": "{number}"}}\n' for number in range(20)))
    assert [json.loads(line)["text"] for line in rest.splitlines()] == ["18", "19"]
    assert len(first.splitlines()) == 18
    renamed, _ = parts("mine.jsonl", '{"words": "a", "text": "b"}\n' * 3, columns={"text": "words"})
    assert [json.loads(line)["text"] for line in renamed.splitlines()] == ["a", "a"]


@needs_kernels
def test_a_speed_is_that_of_all_blocks_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = Forecast(tiny_model("llama").config, new_tokens=4, rounds=1)
    calls: list[tuple[int, int]] = []

    def seconds(linears: Any, count: int, words: int, embeddings: str) -> float:
        calls.append((count, words))
        return 0.5 * count + words / 1000

    monkeypatch.setattr(forecast, "_seconds", seconds)
    per_block = 0.5 + 64 / 1000 / 2  # two blocks exceed no cache here: weight_bytes is 1, so one is timed
    speed = forecast.tokens_per_second(0.5, "int4", "int8")
    assert calls == [(1, 64), (1, 257), (1, 64)]
    assert speed == pytest.approx(1 / (2 * (per_block + 64 / 1000 / 2) + (257 - 64) / 1000))


def test_a_model_without_a_decoder_has_no_forecast_and_no_target_in_speed(tmp_path: Path) -> None:
    assert forecast_of(tiny_model("gpt_neox").config, new_tokens=4, rounds=1) is None
    save_tiny(tmp_path / "neox", "gpt_neox")
    (tmp_path / "text.txt").write_text("abcdefgh\n" * 200)
    with pytest.raises(InputError, match="a target in tok/s needs a model that the native decoder supports"):
        shears.compress(
            tmp_path / "neox", tmp_path / "out", target="9tok/s", calibration=tmp_path / "text.txt", **SETTINGS
        )


def test_an_answer_may_have_twice_the_tokens_of_the_longest_right_one() -> None:
    rows = [Tokenized([1, 2, 3], [IGNORED, 2, 3]), Tokenized([1] * 90, [IGNORED] + [1] * 89)]
    assert longest_answer("json", rows) == 178
    assert longest_answer("exact", rows[:1]) == 32
    assert longest_answer("number", rows) is None  # a model may reason first


def test_speeds_are_measured_on_the_model(inputs: Path) -> None:
    """Each probe runs the real code."""
    (inputs / "probed.jsonl").write_text('{"prompt": "abcdefgh", "completion": "ijkl"}\n' * 20)
    texts = split_text(CompressConfig(target="9bits", data=str(inputs / "probed.jsonl")), inputs)
    ref = resolve(inputs / "dense")
    rows = read_training_rows(ref, TrainConfig(data=str(texts.calibration)))
    exam = Exam(texts.held_out, 16, "question", "exact", 8)
    first = Candidate(0.5, "int4", "int4", 400, 3.2, 13.0)
    speeds = measured_speeds(ref, efforts(Amounts(18, 14.0, 250, 28, 2))["quick"], first, texts, rows, exam)
    assert min(speeds) > 0
    assert speeds.answer <= speeds.question


def test_the_verdict_says_first_that_a_dense_model_answers_more() -> None:
    def figures(right: str, **rest: object) -> dict[str, Any]:
        share = right.count("1") / len(right)
        answers = {"accuracy": share, "ci95": [0.0, 1.0], "n": len(right), "right": right}
        return {"answers": answers, "bytes": 100, "bits_per_weight": 4.0, "tokens_per_second": 9.0, "loss": 1.0, **rest}

    package = figures("10", name="s50-int4", package="s50-int4/package")
    record: dict[str, Any] = {
        "dense": {"answers": figures("00")["answers"], "held_out_loss": 1.0}, "measured": [package],
        "rival": figures("11", package="s0-int4/package"), "chosen": "s50-int4", "target": "at most 1 GB",
    }  # fmt: skip
    assert closing_lines(record, "small")[0].startswith(
        "dense int4 (s0-int4/package) (2 of 2, 100.0 % (0.0 to 100.0)) answers more of the same rows correctly. "
        "Keep the unpruned model"
    )
    record["rival"]["answers"] = figures("10")["answers"]
    assert closing_lines(record, "small")[0].startswith("small/s50-int4/package meets the target")
