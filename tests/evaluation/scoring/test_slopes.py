"""Slopes of every example's loss along the ranks: equal to finite differences, packed or padded."""

import pytest
import torch

from shears.adapt.space import RankConfig
from shears.evaluation.scoring import scorers
from shears.evaluation.scoring.score import plainly
from shears.evaluation.scoring.scorers import LossScorer
from shears.models.sparse_adapter import MASK
from tests.searching.adapters import PAD, make_adapter, make_rows

STEP = 1e-3
PARTS = [[3, 1], [0, 2, 4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("packed", [True, False])
def test_slopes_are_the_derivatives_along_every_factor(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "keeps_apart", lambda _: packed)
    elastic = make_adapter()
    elastic.model.double()
    scorer = LossScorer(elastic.model, make_rows(), PAD, 8, PARTS)
    origin = elastic.space.heuristic()
    slopes = scorer.slopes(elastic, origin)
    for group in list(elastic.space.ranks)[::5]:
        layers = [elastic.model.get_base_model().get_submodule(name) for name in elastic.space.modules[group]]
        for rank in (0, origin[group] - 1, origin[group]):  # two that are on, one that is off
            sides = []
            for sign in (1, -1):
                elastic.activate(origin)
                for layer in layers:
                    layer.lora_A["default"].get_buffer(MASK)[rank] += sign * STEP
                sides.append(torch.cat([scorer.measure(part, plainly) for part in range(2)]))
            expected = (sides[0] - sides[1]) / (2 * STEP)
            torch.testing.assert_close(slopes.by_group[group][:, rank].double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("nested", [False, True])
def test_predictions_add_the_slopes_of_switched_ranks_and_approximate_the_loss(nested: bool) -> None:
    elastic = make_adapter()
    if nested:  # smaller ranks have larger factors
        elastic.space = elastic.space.nested()
    for layer in elastic.model.modules():
        if hasattr(layer, "lora_B"):
            layer.lora_B["default"].weight.data /= 20  # small updates, as trained ones are
    scorer = LossScorer(elastic.model, make_rows(), PAD, 8)
    origin = elastic.space.heuristic()
    slopes = scorer.slopes(elastic, origin)
    assert elastic.active == elastic.space.maximal()  # as it was activated before
    assert not slopes.predict(origin).any()
    elastic.activate(origin)
    before = scorer.measure(0, plainly)
    first, second = list(elastic.space.ranks)[:2]
    for changed in ({first: 6}, {second: 2}, {first: 2, second: 6}):
        ranks = RankConfig({**origin, **changed})
        elastic.activate(ranks)
        difference = scorer.measure(0, plainly) - before
        left = difference - slopes.predict(ranks)
        assert left.std() < 0.2 * difference.std()
    one, other = (slopes.predict(RankConfig({**origin, **part})) for part in ({first: 6}, {second: 2}))
    torch.testing.assert_close(slopes.predict(RankConfig({**origin, first: 6, second: 2})), one + other)
    assert slopes.predict_sum(ranks) == pytest.approx(float(slopes.predict(ranks).sum()))
