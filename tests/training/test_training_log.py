"""training_log.jsonl holds what was trained: every example of an epoch once, under the ranks of (seed, step, row)."""

from pathlib import Path
from typing import Any

import pytest

from shears.adapt.prepare import build_space
from shears.adapt.sampling import RowPosition, rank_sampling
from shears.adapt.train import train
from shears.data.examples import load_examples, tokenize_all
from shears.models.load import load_model, load_tokenizer
from tests.training.small_training import SETTINGS, log

WAYS: list[dict[str, Any]] = [
    {"sampling": "per-example"},
    {"sampling": "per-example", "packing": False, "micro_batch_size": 1},
    {"sampling": "sandwich", "curriculum": 1.0, "micro_batch_size": 2},
    {"sampling": "per-process"},
]


@pytest.mark.parametrize("way", WAYS)
def test_every_example_of_an_epoch_is_there_once(base: Path, data: str, tmp_path: Path, way: dict[str, Any]) -> None:
    lines = log(train(base, tmp_path / "out", data=data, **{**SETTINGS, **way, "max_steps": 10}))
    assert [len(line["examples"]) for line in lines] == [4, 4, 4, 4, 2] * 2
    for epoch in (lines[:5], lines[5:]):
        assert sorted(example["example"] for line in epoch for example in line["examples"]) == list(range(18))
    orders = [
        [example["example"] for line in epoch for example in line["examples"]] for epoch in (lines[:5], lines[5:])
    ]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("way", WAYS)
def test_ranks_are_those_of_seed_step_and_row(base: Path, data: str, tmp_path: Path, way: dict[str, Any]) -> None:
    settings = {**SETTINGS, **way, "seed": 3}
    output = train(base, tmp_path / "out", data=data, **settings)
    space = build_space(load_model(base), ("q_proj+k_proj+v_proj", "up_proj", "down_proj"), SETTINGS["ranks"])
    strategy = rank_sampling(settings["sampling"], space, 3, curriculum=round(settings.get("curriculum", 0) * 7))
    for step, line in enumerate(log(output)):
        drawn = [strategy.config(RowPosition(step, row=row)) for row, _ in enumerate(line["examples"])]
        # in the order of the space
        assert [example["ranks"] for example in line["examples"]] == [
            [c[group] for group in space.ranks] for c in drawn
        ]


@pytest.mark.parametrize("way", WAYS)
def test_a_steps_loss_is_its_examples_mean_by_token(base: Path, data: str, tmp_path: Path, way: dict[str, Any]) -> None:
    output = train(base, tmp_path / "out", data=data, **{**SETTINGS, **way})
    tokenizer = load_tokenizer(base)
    rows = tokenize_all(load_examples(data, "question", tokenizer), tokenizer, 512)
    for line in log(output):
        examples = line["examples"]
        mean = sum(each["loss"] * each["tokens"] for each in examples) / sum(each["tokens"] for each in examples)
        assert line["loss"] == pytest.approx(mean, abs=2e-5)
        for each in examples:
            assert each["tokens"] == sum(label >= 0 for label in rows[each["example"]].labels)
        assert line["tokens"] == sum(len(rows[each["example"]].input_ids) for each in examples)


@pytest.mark.parametrize("sampling_name", ["uniform", "per-process", "sandwich"])
def test_ranks_and_losses_are_logged_by_step_or_by_example(
    base: Path, data: str, tmp_path: Path, sampling_name: str
) -> None:
    lines = log(train(base, tmp_path / "out", data=data, sampling=sampling_name, **SETTINGS))
    if sampling_name == "uniform":
        assert len([line["ranks"] for line in lines if "examples" not in line]) == 7
    else:
        assert len([example["ranks"] for line in lines for example in line["examples"]]) == 26


def test_a_space_of_one_configuration_logs_steps(base: Path, data: str, tmp_path: Path) -> None:
    output = train(base, tmp_path / "out", data=data, sampling="sandwich", **{**SETTINGS, "ranks": (4,)})
    assert all(set(line["ranks"].values()) == {4} for line in log(output))
