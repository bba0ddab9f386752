"""Draws depend on seed and step alone and cover the space; the callback activates them in any Trainer."""

from collections import Counter
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from shears.adapt.elastic import make_elastic
from shears.adapt.sampling import NLSCallback, ranks_of_step
from shears.adapt.space import RankConfig, SearchSpace
from shears.config.train import SamplingName
from shears.errors import InputError
from tests.adapt.test_elastic import IDS, elastic_model

SPACE = SearchSpace({f"layers.{i}.a": (3, 2, 1) for i in range(30)})


def test_draws_depend_on_seed_and_step_alone() -> None:
    drawn = [ranks_of_step("uniform", SPACE, 0, step) for step in range(8)]
    assert [ranks_of_step("uniform", SPACE, 0, step) for step in reversed(range(8))] == drawn[::-1]
    assert len(set(drawn)) == 8
    assert [ranks_of_step("uniform", SPACE, 1, step) for step in range(8)] != drawn


@pytest.mark.parametrize("sampling", ["maximal", "nested"])
def test_a_sampling_that_draws_nothing_trains_the_largest_ranks(sampling: SamplingName) -> None:
    assert ranks_of_step(sampling, SPACE, 0, 7) == SPACE.maximal()


def test_every_rank_of_every_group_comes_equally_often() -> None:
    drawn = [ranks_of_step("uniform", SPACE, 3, step) for step in range(960)]
    for group in SPACE.ranks:
        counts = Counter(config[group] for config in drawn)
        assert set(counts) == {3, 2, 1}
        assert all(abs(count - 320) < 5 * (960 * 2 / 9) ** 0.5 for count in counts.values())  # five sigma


def test_every_step_has_its_own_ranks_in_a_stock_trainer(tmp_path: Path) -> None:
    model, elastic = elastic_model()
    seen: list[RankConfig | None] = []
    model.register_forward_pre_hook(lambda *_: seen.append(elastic.active))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[NLSCallback(elastic, seed=3)]).train()
    assert seen == [ranks_of_step("uniform", elastic.space, 3, step) for step in range(3)]
    assert elastic.active == elastic.space.maximal()


@pytest.mark.parametrize(("sampling", "nested"), [("nested", False), ("uniform", True)])
def test_the_callback_refuses_a_sampling_without_its_diagonal_and_the_reverse(
    sampling: SamplingName, nested: bool
) -> None:
    model, elastic = elastic_model()
    elastic.remove()
    elastic = make_elastic(model, elastic.space, nested=nested)
    assert NLSCallback(elastic).sampling == ("nested" if nested else "uniform")
    with pytest.raises(InputError, match=r"need each other.*set both"):
        NLSCallback(elastic, sampling=sampling)
