"""The benchmark of the front: it makes, measures, shows and resumes; its split, front line and importance are right."""

import json
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from benchmarks.engines import LONGEST, answer, importance_file
from benchmarks.front import answered, at_once, main, tables
from benchmarks.front_arms import ARMS, AS_IT_CAME, DENSE, DENSE_INT4, Q4_K_M, SPARSE_INT4, Maker, importance, pareto
from benchmarks.report import add_row, rows_of
from benchmarks.rival import RivalBackend
from benchmarks.tasks import lines_of, question_key, write_mawps_anew
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import tasks
from shears.errors import InputError
from shears.runtime.backend import Backend
from tests.tiny import save_tiny, tiny_model

COSTS = st.tuples(st.integers(0, 5), st.integers(0, 5))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MAWPS of 3 official questions, one asked twice, 24 training and 6 validation ones, some asked elsewhere too."""
    folder = tmp_path / "data" / "mawps"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tasks, "NEW_TESTS", 6)
    official = [{"instruction": f"What is {n} + 1?", "answer": n + 1} for n in (1, 2, 2)]
    (folder / "test.json").write_text(json.dumps(official))
    for name, numbers in (("trainset", [*range(2, 25), 5]), ("validset", range(23, 29))):
        rows = [{"original_text": f"What is {n} + 1 ?", "equation": f"x={n}+1", "ans": n + 1.0} for n in numbers]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder.parent


def test_the_new_split_has_more_questions_and_none_in_two_files(data: Path, tmp_path: Path) -> None:
    paths = write_mawps_anew(data / "mawps", tmp_path / "anew")
    keys = {split: [question_key(row["prompt"]) for row in lines_of(path)] for split, path in paths.items()}
    assert {split: len(found) for split, found in keys.items()} == {"test": 3 + 6, "train": 22 - 6, "validation": 4}
    assert keys["test"][:3] == [question_key(f"Question: What is {n} + 1 ? Answer:") for n in (1, 2, 2)]
    new = [*keys["test"][3:], *keys["train"], *keys["validation"]]
    assert len(set(new)) == len(new)
    assert not set(new) & set(keys["test"][:3])
    again = write_mawps_anew(data / "mawps", tmp_path / "again")
    assert all(again[split].read_bytes() == path.read_bytes() for split, path in paths.items())


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), COSTS, max_size=9))
def test_the_front_holds_what_nothing_beats(found: Mapping[str, tuple[float, float]]) -> None:
    def is_beaten(point: tuple[float, float]) -> bool:
        return any(c <= point[0] and v >= point[1] and (c, v) != point for c, v in found.values())

    front = list(pareto(found))
    assert set(front) == {name for name, point in found.items() if not is_beaten(point)}
    assert [found[name][0] for name in front] == sorted(found[name][0] for name in front)


def test_importance_is_the_mean_square_of_a_linears_inputs() -> None:
    model = tiny_model("llama")
    batches = [torch.randint(0, 200, (1, length), generator=torch.Generator().manual_seed(length)) for length in (3, 9)]
    found = importance(model, batches)
    layer = model.model.layers[0]
    with torch.no_grad():
        inputs = [layer.input_layernorm(model.model.embed_tokens(ids))[0] for ids in batches]
    expected = torch.cat(inputs).square().mean(0).numpy()
    np.testing.assert_allclose(found["model.layers.0.self_attn.q_proj"], expected, rtol=1e-6)
    assert len(found) == 7 * model.config.num_hidden_layers
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_importance_matrix_of_ik_llama_cpp_has_names_calls_and_values(tmp_path: Path) -> None:
    vectors = {"blk.0.attn_q.weight": np.array([1.5, 2.0], np.float32), "b": np.array([3.0], np.float32)}
    np.savez(tmp_path / "m.npz", allow_pickle=False, **vectors)
    data = importance_file(np.load(tmp_path / "m.npz"))
    first = struct.pack("<i19siiff", 19, b"blk.0.attn_q.weight", 1, 2, 1.5, 2.0)
    assert data == struct.pack("<i", 2) + first + struct.pack("<isiif", 1, b"b", 1, 1, 3.0)


class _Summing:
    """Stands for a loaded model: after tokens the likeliest one is the sum of all of its text, modulo 7."""

    about = "sums"

    def clear(self, texts: int) -> None:
        self.sums = np.zeros(texts, int)

    def read(self, tokens: list[list[int]]) -> Any:
        self.sums += np.array(tokens).sum(1)
        return np.eye(7)[self.sums % 7]


@pytest.mark.parametrize("texts", [1, 3])
def test_a_process_reads_and_continues_texts_at_once(texts: int) -> None:
    model = _Summing()
    found = answer(model, [1, 2], 3, texts=texts)
    assert found["tokens"] == [3, 6, 5]  # 1 + 2, then 3 + 3, then 6 + 6 modulo 7
    assert len(model.sums) == texts
    assert 0 < found["decoding"] < found["seconds"]
    assert answer(model, [4], 1, more=True, texts=texts)["tokens"] == [(12 + 4) % 7]
    assert answer(model, [4], 0, texts=texts)["tokens"] == []


class _Counting:
    """Stands for a rival's process: after tokens it says the sum of all since the last beginning."""

    about = "counts"

    def __init__(self) -> None:
        self.total = 0

    def ask(self, tokens: Any, new: int, *, more: bool = False) -> dict[str, Any]:
        self.total = (self.total if more else 0) + sum(tokens)
        return {"tokens": [self.total] * new}


def test_a_rival_as_a_backend_keeps_its_cache_until_it_is_dropped() -> None:
    process: Any = _Counting()
    backend = RivalBackend(process, 50)
    assert isinstance(backend, Backend)
    assert backend.prefill(0, [1, 2]).argmax() == 3
    assert backend.prefill(0, [4]).argmax() == 7
    assert backend.step([0], [10]).argmax(1).tolist() == [17]
    backend.drop(0)
    assert backend.prefill(0, [5]).argmax() == 5


def test_given_rows_stand_for_the_sets_training_rows_only(data: Path, tmp_path: Path) -> None:
    given = tmp_path / "own-right.jsonl"
    given.write_text("".join(f'{{"prompt": "{n} + 1?", "completion": "{n + 1}"}}\n' for n in range(3)))
    maker = Maker("smollm2-135m", "135m", "mawps", 0, data, tmp_path, 0, 1.0, given=given)
    assert maker.rows("train") == given
    assert lines_of(replace(maker, examples=2).rows("train")) == lines_of(given)[:2]
    assert len(lines_of(maker.rows("test"))) == 3 + 6
    assert maker.folder.name == "mawps-own-right-all-x1-seed0"
    of_the_set = replace(maker, given=None, examples=2)
    assert of_the_set.folder != replace(maker, examples=2).folder
    assert (
        lines_of(of_the_set.rows("train")) != lines_of(given)[:2] == lines_of(replace(maker, examples=2).rows("train"))
    )


def test_a_rival_is_not_asked_to_weigh_answers(tmp_path: Path) -> None:
    maker = Maker("smollm2-135m", "135m", "arc-easy", 0, tmp_path, tmp_path, 0, 1.0)
    with pytest.raises(InputError, match="take --decoder ours"):
        answered(maker, ARMS[Q4_K_M], 0, "own")


def _front(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["front", *map(str, words)])
    main()


def test_a_front_is_made_resumed_timed_and_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model, no llama.cpp: its arms are named as missing."""
    results = tmp_path / "results.jsonl"
    model = save_tiny(tmp_path / "tiny", max_position_embeddings=LONGEST)
    arms = [AS_IT_CAME, DENSE, DENSE_INT4, SPARSE_INT4, "dense int4, rounded", Q4_K_M]
    options = [
        "--results", results, "--data", data, "--work", tmp_path / "work", "--arms", "; ".join(arms), "--seeds", "0",
        "--models", f"tiny={model}", "--set", "max_steps=1", "--set", "warmup_steps=0",
        "--prune", "method=magnitude", "--limit", "5", "--rounds", "1", "--modes", "1 thread",
    ]  # fmt: skip
    _front(monkeypatch, "run", *options)
    rows = rows_of(results)
    assert [row["arm"] for row in rows] == arms[:-1]
    assert {len(row["right"]) for row in rows} == {5}
    assert max(rows[2]["bytes"], rows[3]["bytes"]) < rows[1]["bytes"]
    assert rows[0]["right"] == "00000"
    before = capsys.readouterr().out
    assert "skipped, because --rivals names no Python of theirs: llama.cpp Q4_K_M" in before
    assert "1 of 3 seeds: too few to decide." in before
    timed = [DENSE, SPARSE_INT4]
    _front(monkeypatch, "speed", *options, "--arms", "; ".join(timed))
    _front(monkeypatch, "run", *options)
    lines = rows_of(results)
    assert lines[:5] == rows
    assert [(row["mode"], row["arm"]) for row in lines[5:]] == [("1 thread", arm) for arm in timed]
    assert f"| {SPARSE_INT4} | 1.00 (1.00 to 1.00) |" in capsys.readouterr().out.splitlines()
    _front(monkeypatch, "pictures", *options, "--output", tmp_path / "pictures")
    pictures = sorted((tmp_path / "pictures").glob("*.svg"))
    assert [path.stem for path in pictures] == ["front-tiny-mawps-bytes", "front-tiny-mawps-speed"]
    for path, count in zip(pictures, (5, 2), strict=True):
        assert str(ElementTree.parse(path).findtext("{*}title")).count(" % at ") == count  # a point for each arm


def test_questions_of_knowledge_are_answered_by_the_likeliest_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ARC-Easy").mkdir()
    asked = (
        "Please choose the correct answer to the question: Which is {}?\n\nAnswer1: one Answer2: {} Answer3: ten\n\n"
    )
    for split, count in (("train", 210), ("test", 4)):
        form = "Answer format: answer1/answer2/answer3"
        rows = [{"instruction": asked.format(n, n) + form, "answer": "answer2"} for n in range(count)]
        (tmp_path / "ARC-Easy" / f"{split}.json").write_text(json.dumps(rows))
    model = save_tiny(tmp_path / "tiny")
    options = ["--models", f"tiny={model}", "--task", "arc-easy", "--arms", AS_IT_CAME, "--seeds", "0"]
    files = ["--data", tmp_path, "--work", tmp_path / "work", "--results", tmp_path / "r.jsonl"]
    _front(monkeypatch, "run", *files, *options)
    (row,) = rows_of(tmp_path / "r.jsonl")
    assert (len(row["right"]), row["cut"]) == (4, 0)
    add_row(tmp_path / "given.jsonl", {**row, "rows": "own.jsonl"})
    _front(monkeypatch, "run", *files[:-1], tmp_path / "given.jsonl", *options)
    assert [line["rows"] for line in rows_of(tmp_path / "given.jsonl")] == ["own.jsonl", None]


def test_models_of_one_task_share_a_picture_whose_steps_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"kind": "test", "task": "mawps", "seed": 0, "examples": 0, "epochs": 1.0, "limit": 0, "cut": 0}
    cells = [("a-1b", DENSE, "10", 250), ("a-2b", DENSE, "11", 1000), ("a-2b", SPARSE_INT4, "11", 500)]
    for model, arm, right, size in cells:
        add_row(tmp_path / "r.jsonl", {**key, "model": model, "arm": arm, "right": right, "bytes": size * 1_000_000})
    _front(monkeypatch, "pictures", "--results", tmp_path / "r.jsonl", "--output", tmp_path)
    drawing = ElementTree.parse(tmp_path / "front-mawps-bytes.svg").getroot()
    spoken = str(drawing.findtext("{*}title"))
    assert spoken.endswith("On the front: 1b dense bf16, 2b sparse 50 % int4")


def test_differences_are_paired_by_question_and_corrected_over_the_arms_that_decide(tmp_path: Path) -> None:
    answers = {DENSE_INT4: "1100", SPARSE_INT4: "1110", "dense int8": "1111", Q4_K_M: "0000"}
    key = {"kind": "test", "model": "m", "task": "mawps", "examples": 0, "epochs": 1.0, "limit": 0, "cut": 1}
    key["rows"] = "own.jsonl"
    for name, right in answers.items():
        for seed in (0, 1):
            add_row(tmp_path / "r.jsonl", {**key, "arm": name, "seed": seed, "right": right, "bytes": 2_500_000})
    lines = list(tables(rows_of(tmp_path / "r.jsonl")))
    assert "\n## m, mawps: own.jsonl, epochs 1\n" in lines
    assert f"| {SPARSE_INT4} | 2 | 75.0 (30.1 to 95.4) | 2 | 2.5 |" in lines
    shown = next(line for line in lines if line.startswith(f"| {SPARSE_INT4} | +"))
    assert shown.startswith(f"| {SPARSE_INT4} | +25.0 (")
    corrected = [line for line in lines if line.endswith("| 0, 1 |")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in corrected] == [
        f"{SPARSE_INT4} minus {DENSE_INT4}", f"{Q4_K_M} minus {DENSE_INT4}", f"{SPARSE_INT4} minus {Q4_K_M}",
    ]  # fmt: skip


def test_processes_at_once_are_all_asked_before_one_is_waited_for() -> None:
    calls = []

    class Process:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def begin(self, tokens: Any, new: int) -> None:
            calls.append((tokens, new))

        def answer(self) -> dict[str, Any]:
            assert calls == [([7], 3)] * 2
            return {"seconds": self.seconds, "cpu": self.seconds / 2, "tokens": [9] * 3}

    processes: Any = [Process(1.0), Process(3.0)]
    assert at_once(processes).run([7], 3) == ((2.0, 1.0), [9, 9, 9])


def test_every_arm_of_a_rival_is_dense_and_named_after_its_format() -> None:
    rivals = {name: arm for name, arm in ARMS.items() if arm.is_rival}
    assert all(name == f"{arm.engine} {arm.values.upper()}" for name, arm in rivals.items())
    assert all((arm.sparsity, arm.training) == (0.0, "lora") for arm in rivals.values())
