"""Reordering keeps the product and makes every smaller rank the best of its size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shears.adapt.elastic import by_size, reorder
from shears.adapt.load import load_super_adapter
from shears.adapt.train import train
from tests.adapt.test_elastic import elastic_model, logits
from tests.training.small_training import SETTINGS


@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(20, 30, 6), (30, 20, 6), (4, 30, 6), (30, 4, 6), (8, 8, 1)])
def test_every_smaller_rank_is_the_best_of_its_size(outputs: int, inputs: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    ordered_a, ordered_b = by_size(a, b)
    product = (b.double() @ a.double()).numpy()
    values = np.linalg.svd(product, compute_uv=False)
    for count in range(rank + 1):
        rest = product - (ordered_b[:, :count].double() @ ordered_a[:count].double()).numpy()
        expected = np.sqrt((values[count:] ** 2).sum())
        np.testing.assert_allclose(np.linalg.norm(rest), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ordered_a.norm(dim=1), ordered_b.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_an_adapter_that_is_zero_stays_zero() -> None:
    a, b = by_size(torch.randn(3, 5), torch.zeros(4, 3))
    assert not a.any()
    assert not b.any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_model_computes_what_it_did(name: str) -> None:
    peft_model, elastic = elastic_model(name)
    before = logits(peft_model)
    reorder(peft_model)
    torch.testing.assert_close(logits(peft_model), before, rtol=1e-4, atol=1e-5)
    elastic.activate(elastic.space.minimal())
    assert not torch.allclose(logits(peft_model), before, atol=1e-3)


def test_largest_ranks_and_reordering_train_lora_that_can_be_cut(base: Path, data: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SETTINGS, "data": data}
    whole = load_super_adapter(train(base, tmp_path / "lora", **{**settings, "ranks": (6,)}))
    cut = load_super_adapter(train(base, tmp_path / "cut", sampling="maximal", **settings))
    assert cut.elastic.space.size > 1
    torch.testing.assert_close(logits(cut.model), logits(whole.model), rtol=1e-4, atol=1e-5)
