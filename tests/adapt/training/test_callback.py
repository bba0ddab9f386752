"""NLSCallback on anybody's Trainer: ranks by step, and what it cannot draw is refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from shears.adapt.sampling import Place, sampling, uniform
from shears.adapt.space import RankConfig
from shears.adapt.training.callback import NLSCallback
from shears.errors import InputError
from tests.adapt.test_elastic import IDS, elastic_model


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


def test_every_step_has_ranks_of_its_own(tmp_path: Path) -> None:
    trainer, callback, seen = plain_trainer(tmp_path)
    trainer.train()
    assert seen == [uniform(callback.elastic.space, 3, Place(step)) for step in range(3)]
    assert callback.elastic.active == callback.elastic.space.maximal()


@pytest.mark.parametrize("name", ["per-example", "sandwich"])
def test_ranks_by_example_are_refused_where_nobody_draws_them(tmp_path: Path, name: str) -> None:
    trainer, callback, seen = plain_trainer(tmp_path)
    callback.strategy = sampling(name, callback.elastic.space, 0)
    with pytest.raises(InputError, match=r"by step or by process, got one by example; take uniform, or shears\.train"):
        trainer.train()
    assert not seen


@pytest.mark.parametrize(("broadcast", "refused"), [(None, True), (True, True), (False, False)])
def test_ranks_by_process_need_masks_that_are_not_broadcast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broadcast: bool | None, refused: bool
) -> None:
    trainer, callback, _ = plain_trainer(tmp_path)
    callback.strategy = sampling("per-process", callback.elastic.space, 0)
    trainer.args.ddp_broadcast_buffers = broadcast
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)  # alone there is nobody to take them from
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(InputError, match="ddp_broadcast_buffers=False") if refused else nullcontext():
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
