"""`compress` makes packages until one meets the target, measures them and continues; a plan leaves no trace."""

import copy
import json
import math
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.adapt.prepare import read_training_rows
from shears.checkpoints.packed.file import read_package
from shears.cli import main
from shears.cli.tables import next_lines, verdict_line
from shears.config import CompressConfig, TrainConfig
from shears.config.resolve import build
from shears.data.calibration import text_tokens
from shears.data.examples import IGNORED, Tokenized
from shears.errors import InputError
from shears.models.fetching import convert_gguf
from shears.models.ref import resolve
from shears.records.artifacts import read_object
from shears.records.timing import real_seconds
from shears.runs.compress.effort import FEWEST_SEQUENCES
from shears.runs.compress.exam import Exam, longest_answer, split_text
from shears.runs.compress.recipes import dtype_of
from shears.runs.compress.speeds import Speeds, measured_speeds
from shears.runtime.forecast import Forecast, forecast_of
from shears.runtime.native import kernels_available
from tests.models.gguf_files import write_gguf
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "num_samples": 4, "sequence_length": 16, "sparsities": (0.0, 0.5),
    "values": ("bf16", "int4"), "embeddings": ("keep", "int4"), "time": "quick",
}  # fmt: skip
SPEEDS = Speeds(load=0.1, forward=1e-4, pruning=1.0, trained=1e-3, question=0.2, trained_question=0.1)
needs_kernels = pytest.mark.skipif(not kernels_available(), reason="the C++ extension was not built")


@pytest.fixture(scope="module", autouse=True)
def _without_tuning() -> Any:
    """Take the default walks, and weights that need not exceed the cache: seconds become milliseconds."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SHEARS_TUNING", "off")
    for module in ("exam", "planning"):
        patch.setattr(f"shears.runs.compress.{module}.NEW_TOKENS", 4)
        patch.setattr(f"shears.runs.compress.{module}.ROUNDS", 1)
    patch.setattr("shears.runs.compress.planning.measured_speeds", lambda *_: SPEEDS)
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
    monkeypatch.setattr("shears.runs.compress.planning.forecast_of", lambda *_, **__: None)  # of 64 positions
    monkeypatch.setattr("shears.models.fetching._convert", lambda *_: pytest.fail("converted again"))
    options = {**SETTINGS, "target": "12bits", "calibration": str(inputs / "text.txt")}
    record = shears.compress(file, inputs / "of_file", dry_run=True, **options)
    assert record["base_fingerprint"] == resolve(there).fingerprint
    dtypes = [dtype_of(resolve(model, "bf16")) for model in (file, inputs / "dense")]
    assert dtypes == ["bf16", "auto"]


def test_a_plan_orders_what_meets_the_target_and_writes_nothing(inputs: Path) -> None:
    record = shears.compress(
        inputs / "dense", inputs / "dry", dry_run=True, target="9bits", calibration=inputs / "text.txt", **SETTINGS
    )
    assert not (inputs / "dry").exists()
    assert len(record["candidates"]) == 8
    meets = [each["bits_per_weight"] <= 9 for each in record["candidates"]]
    assert [each["meets"] for each in record["candidates"]] == meets == sorted(meets, reverse=True)
    losses = [each["added_loss"] for each in record["candidates"] if each["meets"]]
    assert losses == sorted(losses)
    assert record["dense"]["loss"] == pytest.approx(math.log(257), rel=0.05)  # a random model knows nothing
    assert [stage["name"] for stage in record["stages"]] == ["plan", "dense", "sparsify", "export", "measure"]
    assert list(record["efforts"]) == ["quick", "usual", "thorough"]
    assert sorted(record["efforts"].values()) == list(record["efforts"].values())
    assert record["stages"][3]["disk"] == record["candidates"][0]["bytes"]  # `run --dry-run` says the same number


def test_a_text_of_instructions_is_counted_in_the_form_of_use(inputs: Path) -> None:
    """Without a training that is the chat template of the model."""
    rows = [f'{{"instruction": "{letter}", "output": "b"}}\n' for letter in "abcdefghij"]
    (inputs / "asked.jsonl").write_text("".join(rows))
    record = shears.compress(
        inputs / "dense", inputs / "dry", dry_run=True, target="12bits", calibration=inputs / "asked.jsonl",
        **{**SETTINGS, "sequence_length": 200, "sparsities": "0.5", "values": "bf16", "embeddings": "keep"},
    )  # fmt: skip
    (inputs / "first.jsonl").write_text("".join(rows[:9]))
    tokens = {
        template: len(text_tokens(str(inputs / "first.jsonl"), tiny_tokenizer(), template=template))
        for template in ("chat", "question")
    }
    assert record["template"] == "chat"
    assert record["effort"]["sequence_length"] == tokens["chat"] // FEWEST_SEQUENCES
    assert tokens["chat"] // FEWEST_SEQUENCES != tokens["question"] // FEWEST_SEQUENCES


def test_the_package_meets_the_target_and_was_measured(made: tuple[Path, dict[str, Any]]) -> None:
    out, record = made
    row = next(row for row in record["measured"] if row["name"] == record["chosen"])
    size = (out / row["package"] / "package.safetensors").stat().st_size
    assert row["bytes"] == size
    (planned,) = [each["bytes"] for each in record["candidates"] if each["name"] == record["chosen"]]
    assert planned == pytest.approx(size, rel=5e-4)
    assert row["holds"] is True
    assert 8 * size / tiny_parameters() == row["bits_per_weight"] <= 5.2
    assert row["tokens_per_second"] > 0
    measured = shears.evaluate(
        out / row["package"], task="perplexity", data=str(out / "held_out.txt"), sequence_length=16, limit=4
    )
    assert row["loss"] == pytest.approx(math.log(measured.value))
    assert json.loads((out / "compress.json").read_text()) == record
    assert (out / row["name"] / "recipe.yaml").is_file()


def tiny_parameters() -> int:
    return tiny_model(hidden_size=64, intermediate_size=128).num_parameters()


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


def test_the_report_draws_every_package(made: tuple[Path, dict[str, Any]]) -> None:
    out, record = made
    page = shears.write_report(out).read_text()
    assert "Loss over size, MB" in page
    assert "Loss over tokens a second" in page
    for row in record["measured"]:
        assert page.count(row["name"]) >= 3
    assert all(each["name"] in page for each in record["candidates"])


def test_a_package_that_misses_is_followed_by_a_better_one_on_the_same_sparse_model(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"int8": 60.0, "int4": 90.0}
    monkeypatch.setattr(Forecast, "tokens_per_second", lambda _, s, values, e: speeds.get(values, 10.0))
    measured = iter([30.0, 55.0])
    monkeypatch.setattr(
        "shears.runs.compress.exam.package_decoding",
        lambda *_: dict.fromkeys(("median", "min", "max"), next(measured)),
    )
    settings = {**SETTINGS, "sparsities": (0.5,), "values": ("bf16", "int8", "int4"), "embeddings": ("keep",)}
    record = shears.compress(
        inputs / "dense", inputs / "fast", target="50tok/s", calibration=inputs / "text.txt", **settings
    )
    assert [(row["name"], row["holds"]) for row in record["measured"]] == [("s50-int8", False), ("s50-int4", True)]
    assert record["chosen"] == "s50-int4"
    files = [inputs / "fast" / name / "sparse" / "model.safetensors" for name in ("s50-int8", "s50-int4")]
    assert files[0].samefile(files[1])


def test_a_sparse_model_is_healed_and_trained_for_the_package(inputs: Path) -> None:
    (inputs / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    save_tiny(inputs / "tuned", seed=1, hidden_size=64, intermediate_size=128)
    settings = {**SETTINGS, "sparsities": "0.5", "values": "int4", "embeddings": "int8"}
    record = shears.compress(
        inputs / "dense", inputs / "trained", target="9bits", calibration=inputs / "text.txt", heal=64,
        data=inputs / "rows.jsonl", max_steps=1, teacher=inputs / "tuned", **settings,
    )  # fmt: skip
    folder = inputs / "trained" / record["chosen"]
    assert {"sparse", "healed", "super_adapter", "package"} <= {path.name for path in folder.iterdir()}
    assert [stage["name"] for stage in record["stages"]] == [
        "plan", "dense", "sparsify", "heal", "train", "export", "measure",
    ]  # fmt: skip
    tuned = resolve(inputs / "tuned").fingerprint
    records = [read_object(folder / name) for name in ("healed/heal.json", "super_adapter/search_space.json")]
    assert [each["teacher_fingerprint"] for each in records] == [tuned, tuned]
    package = read_package(folder / "package")
    assert {entry.values for entry in package.index.packed.values()} == {"int4"}
    assert not package.adapter()  # it was merged


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "100GB"}, "the target must need a compression"),
        ({"target": "1bits"}, r"nearest of 8 candidates is s50-int4-int4"),
        ({"target": "9bits", "calibration": None}, r"compress\.data or compress\.calibration must be given"),
        ({"target": "9bits", "heal": 64, "teacher": "nowhere"}, "nowhere"),
        ({"target": "9bits", "calibration": "nowhere.txt"}, "nowhere.txt cannot be read: it does not exist"),
        ({"target": "9bits", "sequence_length": 9999}, "sequence_length must be at most this model's context"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(inputs: Path, changes: dict[str, Any], words: str) -> None:
    settings = {**SETTINGS, "calibration": inputs / "text.txt", **changes}
    with pytest.raises(InputError, match=words):
        shears.compress(inputs / "dense", inputs / "bad", **settings)
    assert not (inputs / "bad").exists()


def test_the_verb_prints_the_plan(
    inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--target", "9bits", "--calibration", "self", "--dry-run"]
    sizes = ["--num-samples", "4", "--sequence-length", "16", "--values", "int4"]
    monkeypatch.setattr(sys, "argv", ["shears", "compress", str(inputs / "dense"), str(inputs / "x"), *words, *sizes])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "s0-int4" in printed
    assert "fewer zeros first" in printed
    assert "sparsify" in printed


def test_a_text_is_cut_at_a_line_and_rows_at_a_row(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("0123456789\n" * 20)
    first, rest = (file.read_text() for file in split_text(str(tmp_path / "text.txt"), tmp_path))
    assert first + rest == "0123456789\n" * 20
    assert first == "0123456789\n" * 18
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(20)))
    first, rest = (file.read_text() for file in split_text(str(tmp_path / "rows.jsonl"), tmp_path))
    assert [json.loads(line)["text"] for line in rest.splitlines()] == ["18", "19"]
    assert len(first.splitlines()) == 18
    (tmp_path / "mine.jsonl").write_text('{"words": "a", "text": "b"}\n' * 3)
    renamed, _ = split_text(str(tmp_path / "mine.jsonl"), tmp_path, {"text": "words"})
    assert [json.loads(line)["text"] for line in renamed.read_text().splitlines()] == ["a", "a"]
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="must have a part to hold out"):
        split_text(str(tmp_path / "one.jsonl"), tmp_path)


@needs_kernels
def test_a_speed_is_that_of_all_blocks_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = Forecast(tiny_model("llama").config, threads=1, new_tokens=4, rounds=1)
    calls: list[tuple[int, int]] = []

    def seconds(linears: Any, count: int, words: int, embeddings: str) -> float:
        calls.append((count, words))
        return 0.5 * count + words / 1000

    monkeypatch.setattr(forecast, "_seconds", seconds)
    per_block = 0.5 + 64 / 1000 / 2  # two blocks exceed no cache here: weight_bytes is 1, so one is timed
    speed = forecast.tokens_per_second(0.5, "int4", "int8")
    assert calls == [(1, 64), (1, 257), (1, 64)]
    assert speed == pytest.approx(1 / (2 * (per_block + 64 / 1000 / 2) + (257 - 64) / 1000))


@needs_kernels
@pytest.mark.parametrize("kind", ["qwen2", "mistral", "smollm3"])
def test_models_of_other_kinds_have_a_forecast(kind: str) -> None:
    forecast = Forecast(tiny_model(kind).config, threads=1, new_tokens=4, rounds=1)
    assert forecast.tokens_per_second(0.5, "int4", "int8") > 0


def test_a_model_without_a_decoder_has_no_forecast_and_no_target_in_speed(tmp_path: Path) -> None:
    assert forecast_of(tiny_model("gpt_neox").config, threads=1, new_tokens=4, rounds=1) is None
    save_tiny(tmp_path / "neox", "gpt_neox")
    (tmp_path / "text.txt").write_text("abcdefgh\n" * 200)
    with pytest.raises(InputError, match="a target in tok/s needs a model that the native decoder covers"):
        shears.compress(
            tmp_path / "neox", tmp_path / "out", target="9tok/s", calibration=tmp_path / "text.txt", **SETTINGS
        )


CHANGES: dict[str, Any] = {
    "empty": lambda record: record.clear(),
    "no configuration": lambda record: record.pop("config"),
    "a list as configuration": lambda record: record.update(config=[1]),
    "no fingerprint": lambda record: record.pop("base_fingerprint"),
    "no candidates": lambda record: record.update(candidates=[]),
    "candidates of another kind": lambda record: record.update(candidates=[1]),
    "a candidate without a size": lambda record: record["candidates"][0].pop("bytes"),
    "a word as size": lambda record: record["candidates"][0].update(bytes="many"),
    "measured what was not planned": lambda record: record["measured"][0].update(name="../other"),
    "chosen what was not measured": lambda record: record.update(measured=[]),
    "no number of weights": lambda record: record.update(parameters=None),
    "a number as dense model": lambda record: record.update(dense=1),
    "no held-out text": lambda record: record.pop("held_out"),
    "another held-out text": lambda record: record.update(held_out="../none.txt"),
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


def test_what_is_missing_is_said_before_a_file_is_converted(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shears.runs.compress.compress.resolve", lambda _: pytest.fail("it was resolved"))
    with pytest.raises(InputError, match="compress.data or compress.calibration must be given for model.gguf"):
        shears.compress("model.gguf", inputs / "bad", target="9bits")


def test_a_message_names_the_users_file(inputs: Path) -> None:
    rows = inputs / "columns.jsonl"
    rows.write_text('{"words": "abc"}\n' * 20)
    with pytest.raises(InputError, match="columns.jsonl") as error:
        shears.compress(inputs / "dense", inputs / "bad", **{**SETTINGS, "target": "9bits", "calibration": rows})
    assert "held_out.jsonl" not in str(error.value)
    assert "calibration.jsonl" not in str(error.value)


def test_rows_alone_are_trained_on_and_their_last_tenth_is_answered(inputs: Path) -> None:
    """The dense model, the package and dense int4 that was trained alike answer the same rows."""
    rows = [{"ticket": f"t{index}", "fields": json.dumps({"id": index % 3})} for index in range(20)]
    (inputs / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SETTINGS, "sparsities": "0.5", "values": "int4", "embeddings": "int8", "method": "wanda"}
    out = inputs / "tickets"
    record = shears.compress(
        inputs / "dense", out, target="9bits", data=inputs / "tickets.jsonl", max_steps=1,
        columns={"prompt": "ticket", "completion": "fields"}, **settings,
    )  # fmt: skip
    trained = read_object(out / record["chosen"] / "super_adapter" / "search_space.json")
    assert trained["config"]["data"] == str(out / "calibration.jsonl")
    asked = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    assert [row["ticket"] for row in asked] == ["t18", "t19"]
    models = (record["dense"], *record["measured"], record["rival"])
    assert [each["answers"]["task"] for each in models] == ["json"] * 3
    assert all(each["answers"]["n"] == 2 == len(each["answers"]["right"]) for each in models)
    assert record["rival"]["name"] == "s0-int4-int8"
    again = shears.compress(
        inputs / "dense", out, target="9bits", data=inputs / "tickets.jsonl", max_steps=1,
        columns={"prompt": "ticket", "completion": "fields"}, **settings,
    )  # fmt: skip
    assert again == record
    assert {"dense", "sparsify", "train", "measure", "rival"} <= real_seconds(out, record).keys()
    page = shears.write_report(out).read_text()
    assert "right answers" in page
    assert "trains dense int4 alike" in page
    commands = next_lines(record, "small")
    assert commands[0].endswith(f"write small/{record['chosen']}/package answers --prompts small/held_out.jsonl")


def test_without_a_target_the_smallest_with_enough_right_answers_is_chosen(inputs: Path) -> None:
    """A tiny model answers nothing, trained or not: every package is within the loss, and the smallest is found."""
    (inputs / "some.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 20)
    out = inputs / "points"
    record = shears.compress(
        inputs / "dense", out, data=inputs / "some.jsonl", max_steps=1, method="wanda",
        **{**SETTINGS, "embeddings": ("int4",)},
    )  # fmt: skip
    assert record["teacher"]["answers"]["accuracy"] == 0.0
    taught = read_object(out / record["chosen"] / "super_adapter" / "search_space.json")
    assert taught["config"]["teacher"] == str(out / "teacher")
    smallest = min(record["candidates"], key=lambda each: each["bytes"])
    assert record["chosen"] == smallest["name"]
    chosen = next(row for row in record["measured"] if row["name"] == record["chosen"])
    measured = shears.evaluate(  # in the template of the training, as all losses of this record
        out / chosen["package"], task="perplexity", data=str(out / "held_out.jsonl"), sequence_length=16, limit=4
    )
    assert chosen["loss"] == pytest.approx(math.log(measured.value))


def test_an_answer_may_have_twice_the_tokens_of_the_longest_right_one() -> None:
    rows = [Tokenized([1, 2, 3], [IGNORED, 2, 3]), Tokenized([1] * 90, [IGNORED] + [1] * 89)]
    assert longest_answer("json", rows) == 178
    assert longest_answer("exact", rows[:1]) == 32
    assert longest_answer("number", rows) is None  # a model may reason first


def test_speeds_are_measured_on_the_model(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each probe runs the real code; a second model of four blocks takes four times as long to prune, by count."""
    monkeypatch.undo()
    (inputs / "probed.jsonl").write_text('{"prompt": "abcdefgh", "completion": "ijkl"}\n' * 20)
    texts = split_text(str(inputs / "probed.jsonl"), inputs)
    config = build(CompressConfig, "", {"target": "9bits", "data": str(inputs / "probed.jsonl"), "sequence_length": 16})
    ref = resolve(inputs / "dense")
    rows = read_training_rows(ref, TrainConfig(data=str(texts.calibration)))
    exam = Exam(texts.held_out, 16, 4, "question", texts.held_out, "exact", 8)
    speeds = measured_speeds(ref, config, texts, rows, exam)
    assert all(value >= 0 for value in asdict(speeds).values())
    assert speeds.forward > 0 < speeds.pruning
    assert 0 < speeds.trained_question <= speeds.question


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
    assert verdict_line(record, "small").startswith(
        "Keep the dense one where its size will do: dense int4 (s0-int4/package) (2 of 2, 100.0 % (0.0 to 100.0))"
    )
    record["rival"]["answers"] = figures("10")["answers"]
    assert verdict_line(record, "small").startswith("small/s50-int4/package meets the target")


def test_a_row_without_an_answer_is_told_before_anything_is_measured(inputs: Path) -> None:
    lines = ['{"prompt": "a", "completion": "b"}\n'] * 9
    (inputs / "open.jsonl").write_text("".join([*lines, '{"prompt": "a", "completion": ""}\n']))
    with pytest.raises(InputError, match="row 1 of the last tenth of .*open.jsonl: a row must have an answer"):
        shears.compress(inputs / "dense", inputs / "none", target="9bits", data=inputs / "open.jsonl", **SETTINGS)
    assert not (inputs / "none").exists()
