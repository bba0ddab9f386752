"""Draws depend on seed and position alone, cover the space, and follow the curriculum."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from shears.adapt.sampling import STRATEGIES, NLSCallback, RowPosition, per_example, per_process, rank_sampling, uniform
from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from tests.adapt.test_elastic import IDS, elastic_model

SPACE = SearchSpace({f"layers.{i}.a": (3, 2, 1) for i in range(30)})


@pytest.mark.parametrize("name", STRATEGIES)
def test_draws_depend_on_seed_and_position_alone(name: str) -> None:
    strategy, again, other = rank_sampling(name, SPACE, 0), rank_sampling(name, SPACE, 0), rank_sampling(name, SPACE, 1)
    places = [RowPosition(step, process, row) for step in (0, 7) for process in (0, 1) for row in range(8)]
    drawn = [strategy.config(place) for place in places]
    assert [again.config(place) for place in reversed(places)] == drawn[::-1]
    if name not in ("maximal", "nested"):
        assert [other.config(place) for place in places] != drawn


def test_uniform_is_one_configuration_a_step_for_every_process_and_row() -> None:
    assert uniform(SPACE, 0, RowPosition(4)) == uniform(SPACE, 0, RowPosition(4, process=3, row=9))
    assert uniform(SPACE, 0, RowPosition(4)) != uniform(SPACE, 0, RowPosition(5))


def test_processes_and_examples_have_their_own_draws() -> None:
    assert len({per_process(SPACE, 0, RowPosition(4, process)) for process in range(8)}) == 8
    assert per_process(SPACE, 0, RowPosition(4, 1, 2)) == per_process(SPACE, 0, RowPosition(4, 1, 3))
    assert len({per_example(SPACE, 0, RowPosition(4, row=row)) for row in range(8)}) == 8
    assert per_example(SPACE, 0, RowPosition(4, 0, 2)) == per_example(SPACE, 0, RowPosition(4, 1, 2))


def test_every_rank_of_every_group_comes_equally_often() -> None:
    drawn = [per_example(SPACE, 3, RowPosition(step, row=row)) for step in range(60) for row in range(16)]
    for group in SPACE.ranks:
        counts = Counter(config[group] for config in drawn)
        assert set(counts) == {3, 2, 1}
        assert all(abs(count - 320) < 5 * (960 * 2 / 9) ** 0.5 for count in counts.values())  # five sigma


def test_a_sandwich_is_a_quarter_largest_a_quarter_smallest_in_every_step() -> None:
    strategy = rank_sampling("sandwich", SPACE, 0)
    for step in range(5):
        drawn = [strategy.config(RowPosition(step, row=row)) for row in range(16)]
        assert drawn.count(SPACE.maximal()) == drawn.count(SPACE.minimal()) == 4
        assert len(set(drawn)) == 10
    roles = {strategy.config(RowPosition(step, row=0)) == SPACE.maximal() for step in range(4)}
    assert roles == {True, False}  # no place in the batch keeps a role


def test_in_a_curriculum_smaller_ranks_join_one_after_the_other() -> None:
    strategy = rank_sampling("uniform", SPACE, 0, curriculum=30)
    seen = [set(strategy.config(RowPosition(step)).values()) for step in range(40)]
    assert all(ranks == {3} for ranks in seen[:10])
    assert all(ranks == {3, 2} for ranks in seen[10:20])
    assert all(ranks == {3, 2, 1} for ranks in seen[20:])
    assert (
        rank_sampling("sandwich", SPACE, 0, 30).config(RowPosition(1, row=0)) == SPACE.maximal()
    )  # smallest = largest then


def test_a_space_of_one_configuration_needs_no_masks_by_row() -> None:
    assert not rank_sampling("per-example", SearchSpace({"a": (4,)}), 0).by_example
    assert rank_sampling("per-example", SPACE, 0).by_example


def plain_trainer(folder: Path, max_steps: int = 3) -> tuple[Trainer, NLSCallback, list[RankConfig | None]]:
    """A Trainer of transformers with the callback, and the ranks active in each of its forwards."""
    model, elastic = elastic_model()
    seen: list[RankConfig | None] = []
    model.register_forward_pre_hook(lambda *_: seen.append(elastic.active))
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=max_steps, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    callback = NLSCallback(elastic, seed=3)
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]), callback, seen


def test_every_step_has_its_own_ranks(tmp_path: Path) -> None:
    trainer, callback, seen = plain_trainer(tmp_path)
    trainer.train()
    assert seen == [uniform(callback.elastic.space, 3, RowPosition(step)) for step in range(3)]
    assert callback.elastic.active == callback.elastic.space.maximal()


@pytest.mark.parametrize("name", ["per-example", "sandwich"])
def test_ranks_by_example_are_refused_by_a_trainer_that_does_not_draw_them(tmp_path: Path, name: str) -> None:
    trainer, callback, seen = plain_trainer(tmp_path)
    callback.strategy = rank_sampling(name, callback.elastic.space, 0)
    with pytest.raises(InputError, match=r"by step or by process, got one by example; use uniform, or shears\.train"):
        trainer.train()
    assert not seen


@pytest.mark.parametrize(("broadcast", "refused"), [(None, True), (True, True), (False, False)])
def test_ranks_by_process_need_masks_that_are_not_broadcast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broadcast: bool | None, refused: bool
) -> None:
    trainer, callback, _ = plain_trainer(tmp_path)
    callback.strategy = rank_sampling("per-process", callback.elastic.space, 0)
    trainer.args.ddp_broadcast_buffers = broadcast
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)  # alone there is nobody to take them from
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(InputError, match="ddp_broadcast_buffers=False") if refused else nullcontext():
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
