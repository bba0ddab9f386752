"""The comparison of training speeds is fair: the same examples, the same loss, steps that waiting does not change."""

import argparse
import json
import pickle
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.memory import Usage
from benchmarks.plain_peft import BATCH_SIZE, COMPLETIONS, PLAIN, RIVALS
from benchmarks.report import quotients
from benchmarks.train_speed import (
    LORA,
    NLS,
    SPARSE,
    Job,
    by_round,
    grouped,
    lengthened,
    loaded,
    memory,
    memory_report,
    speed_report,
    train,
    write_examples,
)
from benchmarks.turns import take_turns
from torch.nn.functional import cross_entropy

from tests.tiny import save_tiny, tiny_tokenizer

STEPS, ROUNDS = 2, 2


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two steps of a tiny model on questions of unequal length, twice."""
    base, mawps = save_tiny(tmp_path / "base", hidden_size=64), tmp_path / "mawps"
    mawps.mkdir()
    rows = [
        {"original_text": "add " * (a % 7) + f"{a} and {b} ?", "equation": f"X=({a}.0+{b}.0)", "ans": a + b}
        for a in range(1, 9)
        for b in range(6)
    ]
    for name, content in {"trainset.json": rows, "validset.json": rows[:1], "test.json": []}.items():
        (mawps / name).write_text(json.dumps(content))
    asked = argparse.Namespace(data=mawps, steps=STEPS, memory=False, length=None)
    return Job(str(base), str(write_examples(asked, str(base), tmp_path)), ROUNDS, str(tmp_path))


def test_questions_and_answers_of_a_file_are_examples(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n} + 1 ?", "answer": f"{n + 1}"}) + "\n" for n in range(40)))
    asked = argparse.Namespace(data=path, steps=STEPS, memory=False, length=None)
    rows = [json.loads(line) for line in write_examples(asked, job.base, tmp_path).read_text().splitlines()]
    assert len(rows) == STEPS * BATCH_SIZE
    assert all("### Instruction:" in row["prompt"] and row["completion"].strip().isdigit() for row in rows)


def _trainer(arm: str, job: Job) -> Any:
    return loaded(arm, job).__self__  # type: ignore[attr-defined]


def _log(job: Job, arm: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(job.folder) / arm / "training_log.jsonl").read_text().splitlines()]


def test_a_training_that_waits_for_its_turns_makes_the_steps_it_would_make_alone(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fork, which imports nothing anew; for a new process the training must be picklable."""
    monkeypatch.setattr("benchmarks.turns.multiprocessing", SimpleNamespace(get_context=lambda _: get_context("fork")))
    assert pickle.dumps(partial(train, NLS, job))
    [taken] = take_turns({NLS: partial(train, NLS, job)}, ROUNDS * STEPS).values()
    assert len(taken.seconds) == 4
    assert min(taken.seconds) > 0
    assert taken.peak > 10**8  # torch alone takes more
    alone = replace(job, folder=str(tmp_path / "alone"))
    (tmp_path / "alone").mkdir()
    loaded(NLS, alone)()
    assert _log(job, NLS) == _log(alone, NLS)


def test_the_plain_recipe_has_the_batches_and_the_loss_of_ours(job: Job) -> None:
    loaded(LORA, job)()
    ours = _log(job, LORA)
    trainer = _trainer(PLAIN, job)
    batches = list(trainer.get_train_dataloader())
    assert [int(batch["attention_mask"].sum()) for batch in batches] == [line["tokens"] for line in ours]
    with torch.no_grad():
        loss = trainer.model(**batches[0]).loss  # both start from an adapter that adds nothing
    assert loss.item() == pytest.approx(ours[0]["loss"], rel=1e-2)  # ours is under bf16 where the processor has it


@pytest.mark.parametrize("arm", RIVALS)
def test_a_rival_has_the_loss_of_its_rows_taken_alone(job: Job, arm: str) -> None:
    """In any batch: padded, joined, or cut to the completions. And no block is computed twice."""
    trainer = _trainer(arm, replace(job, rounds=1))
    rows = [job.rows()[number] for number in (range(BATCH_SIZE) if RIVALS[arm].grouped else job.order()[:BATCH_SIZE])]
    forwards = BATCH_SIZE // RIVALS[arm].micro_batch
    batches = list(islice(trainer.get_train_dataloader(), forwards))
    labelled = sum(label != -100 for row in rows for label in row.labels)
    trainer.model.float()  # in bf16, sums in another order differ
    with torch.no_grad():
        alone = [
            cross_entropy(
                trainer.model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float(),
                torch.tensor(row.labels[1:]),
                reduction="sum",
            )
            for row in rows
        ]
        losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=labelled) for batch in batches]
    torch.testing.assert_close(sum(losses), sum(alone) / labelled)
    calls: list[object] = []
    trainer.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    trainer.args.max_steps = 1
    trainer.train()
    assert len(calls) == forwards


def test_a_rival_can_skip_the_logits_of_prompts(job: Job) -> None:
    trainer = _trainer(COMPLETIONS, job)
    batch = next(iter(trainer.get_train_dataloader()))
    kept = trainer.model(**batch).logits.shape[1]
    longest = max(sum(label != -100 for label in row.labels) for row in job.rows()[: len(batch["labels"])])
    assert kept == longest + 1 < batch["input_ids"].shape[1]


def test_the_steps_of_a_round_are_of_similar_rows_and_of_all_lengths() -> None:
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "1 " * (number * 7 % 193), "completion": f"{number}"} for number in range(384)]
    taken = grouped(rows, 3, tokenizer)
    lengths = [len(row["prompt"]) for row in taken]
    steps = [lengths[start : start + BATCH_SIZE] for start in range(0, len(lengths), BATCH_SIZE)]
    assert len({row["completion"] for row in taken}) == 3 * BATCH_SIZE
    assert max(steps[0]) < min(steps[1]) <= max(steps[1]) < min(steps[2])


@pytest.mark.slow
def test_a_training_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match="'broken' ended early"):
        take_turns({"broken": partial(int, "no number")}, 1)


def test_the_first_round_does_not_count_and_rounds_are_compared_one_by_one() -> None:
    seconds = by_round({PLAIN: [9, 9, 4, 6, 8, 8], LORA: [9, 9, 1, 3, 4, 4]}, steps=2)
    assert seconds == {PLAIN: [5 / 16, 8 / 16], LORA: [2 / 16, 4 / 16]}
    assert quotients(seconds[PLAIN], seconds[LORA]) == [2.5, 2]


def test_the_report_compares_each_of_our_arms_with_each_rival() -> None:
    seconds = {PLAIN: [4.0, 4.0, 5.0], COMPLETIONS: [3.0, 3.0, 3.0], LORA: [2.0, 2.0, 2.0], SPARSE: [3.0, 2.9, 2.9]}
    peaks = {PLAIN: 4 * 10**9, COMPLETIONS: 10**9, LORA: 10**9, SPARSE: 10**9}
    lines = list(speed_report(seconds, 50, peaks))
    assert "| LoRA, ours | 2.000 (2.000 to 2.000) | 25 | 2.00 (2.00 to 2.50) | 1.00 | 0.25 |" in lines
    assert lines[-4:] == [
        "| LoRA, ours | plain PEFT | 2.00 (2.00 to 2.50) |",
        "| LoRA, ours | PEFT, grouped, completions | 1.50 (1.50 to 1.50) |",
        "| SparsePEFT, ours | plain PEFT | 1.38 (1.33 to 1.72) |",
        "| SparsePEFT, ours | PEFT, grouped, completions | 1.03 (1.00 to 1.03) |",
    ]
    usages = {PLAIN: Usage(1, int(4e9), int(1e9), ""), NLS: Usage(1, int(1.1e9), int(1e9), "")}
    assert list(memory_report(usages))[-1] == "| NLS, ours | 2.10 | 0.42 | 1.00 | 1.10 | 0.28 |"


def test_longer_examples_are_solved_ones_before_a_question() -> None:
    rows = [{"prompt": f"{number}?", "completion": f" {number}!"} for number in range(5)]  # of 5 tokens
    tokenizer = tiny_tokenizer()
    longer = lengthened(rows, 11, tokenizer)
    assert longer == [
        {"prompt": "0? 0!\n\n1?", "completion": " 1!"},
        {"prompt": "2? 2!\n\n3?", "completion": " 3!"},
    ]
    assert lengthened(rows, 4, tokenizer) == rows


@pytest.mark.slow
def test_trainings_take_turns_and_peaks_are_measured_in_processes_of_their_own(job: Job) -> None:
    taken = take_turns({arm: partial(train, arm, job) for arm in (PLAIN, NLS)}, ROUNDS * STEPS)
    assert {arm: len(each.seconds) for arm, each in taken.items()} == {PLAIN: 4, NLS: 4}
    for arm in (PLAIN, NLS):
        (Path(job.folder) / arm).rename(Path(job.folder) / f"{arm}, in turns")
    lines = list(memory([PLAIN, NLS], job))
    assert lines[-1].startswith(f"| {NLS} | ")
