"""Bounds are read as they are written, sizes are those of the files, and the order follows its rule."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shears.config import CompressConfig
from shears.config.compress_options import Bound
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.ref import ModelRef
from shears.runs.compress.added_losses import AddedLosses, rising
from shears.runs.compress.candidates import Candidate, following, meeting, ordered
from shears.runs.compress.recipes import recipe_of, teacher_training

WEIGHTS = 1000
MODEL = ModelRef(Path("model"), "model")


def candidate(sparsity: float, values: Any, embeddings: str, size: int, speed: float | None = None) -> Candidate:
    return Candidate(sparsity, values, embeddings, size, 8 * size / WEIGHTS, speed)


DENSE = candidate(0.0, "bf16", "keep", 2000, 10.0)
HALF = candidate(0.5, "bf16", "keep", 1200, 14.0)
FOUR = candidate(0.0, "int4", "keep", 650, 20.0)
BOTH = candidate(0.5, "int4", "int4", 400, 30.0)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("3.3bits", "bits", 3.3), ("4 bits", "bits", 4.0), ("1.0GB", "bytes", 1e9), ("300MB", "bytes", 3e8),
        ("1GiB", "bytes", 2.0**30), ("40tok/s", "tokens/s", 40.0), ("93.5 tokens/s", "tokens/s", 93.5),
    ],
)  # fmt: skip
def test_a_target_has_a_kind_and_an_amount(text: str, kind: str, amount: float) -> None:
    assert Bound.parse(text) == Bound(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "3", "fast", "3.3", "-1GB", "0bits", "0GB", "40 words/s"])
def test_an_unreadable_target_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"compress\.target must be") as refused:
        build(CompressConfig, "compress", {"target": text})
    assert len(refused.value.messages) == 1


def test_a_bound_is_met_from_its_own_side() -> None:
    assert Bound("bytes", 400).holds(400, WEIGHTS, None)
    assert not Bound("bytes", 399).holds(400, WEIGHTS, None)
    assert Bound("bits", 3.2).holds(400, WEIGHTS, None)
    assert not Bound("bits", 3.1).holds(400, WEIGHTS, None)
    assert Bound("tokens/s", 30).holds(400, WEIGHTS, 30.0)
    assert not Bound("tokens/s", 30).holds(400, WEIGHTS, 29.9)
    assert not Bound("tokens/s", 30).holds(400, WEIGHTS, None)


def test_without_losses_fewer_zeros_come_first_and_then_more_bits() -> None:
    eight = candidate(0.5, "bf16", "int8", 1100)
    assert ordered([BOTH, eight, FOUR, HALF, DENSE], None) == [DENSE, FOUR, HALF, eight, BOTH]


def test_with_losses_the_smallest_sum_comes_first() -> None:
    losses = AddedLosses(2.0, {0.5: 0.3}, {"int4": 0.4}, {"int4": 0.05})
    told = ordered([BOTH, FOUR, HALF, DENSE], losses)
    assert [each.name for each in told] == ["s0-bf16", "s50-bf16", "s0-int4", "s50-int4-int4"]
    assert [each.added_loss for each in told] == pytest.approx([0.0, 0.3, 0.4, 0.75])


def test_a_target_out_of_reach_names_the_nearest_candidate() -> None:
    config = CompressConfig(target="300B")
    with pytest.raises(
        InputError, match=r"within reach \(at most 0.000 GB\); the nearest of 3 .* s50-int4-int4: 4e-07 GB"
    ):
        meeting(config, [HALF, BOTH, FOUR], WEIGHTS)
    with pytest.raises(InputError, match=r"nearest of 2 candidates is s0-int4: .*20\.0 tokens/s"):
        meeting(CompressConfig(target="99tok/s"), [HALF, FOUR], WEIGHTS)
    assert meeting(CompressConfig(target="650B"), [DENSE, FOUR, BOTH], WEIGHTS) == [FOUR, BOTH]


def test_the_next_candidate_is_chosen_by_how_wrong_the_last_prediction_was() -> None:
    config = CompressConfig(target="20tok/s")
    eight = candidate(0.5, "int8", "keep", 700, 21.0)
    order = [FOUR, eight, BOTH]
    missed = {"name": FOUR.name, "bytes": 650, "tokens_per_second": 16.0, "holds": False}  # 0.8 of what was predicted
    assert following(order, [], config.bound, WEIGHTS) == FOUR
    assert following(order, [missed], config.bound, WEIGHTS) == BOTH  # 21 x 0.8 would miss again, 30 x 0.8 would not
    assert following([FOUR, replace(eight, tokens_per_second=19.0)], [missed], config.bound, WEIGHTS) is None
    far = {**missed, "tokens_per_second": 5.0}
    assert following(order, [far], config.bound, WEIGHTS) == BOTH  # nothing should do; the fastest is the best chance
    assert following(order, [far, {**far, "name": BOTH.name}], config.bound, WEIGHTS) is None


def test_the_recipe_has_a_stage_for_what_is_asked_alone() -> None:
    config = CompressConfig(target="1GB", heal=4096, data="arithmetic:train", max_steps=3)
    recipe = recipe_of(BOTH, config, MODEL, "text.txt")
    assert recipe.sparsify.sparsity == 0.5
    assert recipe.heal is not None
    assert recipe.heal.tokens == 4096
    assert recipe.train is not None
    assert (recipe.train.quantize_aware, recipe.train.ranks) == ("int4", (32,))  # merged: no rank to choose
    assert recipe.train.for_base(10**9, 0.5, False).alpha == 128  # half of the product is masked
    assert (recipe.export.format, recipe.export.values, recipe.export.embeddings) == ("package", "int4", "int4")
    dense = recipe_of(FOUR, config.model_copy(update={"data": None}), MODEL, "text.txt")
    assert (dense.heal, dense.train, dense.sparsify.method) == (None, None, "magnitude")
    half = recipe_of(HALF, config, MODEL, "text.txt").train
    assert half is not None
    assert half.sparse_adapter
    taught = recipe_of(BOTH, config.model_copy(update={"teacher": "dense"}), MODEL, "text.txt")
    assert [part.teacher for part in (taught.heal, taught.train) if part is not None] == ["dense", "dense"]


@pytest.mark.parametrize("written", ["self", "self:prompts.jsonl"])
def test_own_words_in_place_of_rows_are_a_calibration(written: str) -> None:
    taken = build(CompressConfig, "compress", {"data": written, "target": "4bits"})
    assert taken == build(CompressConfig, "compress", {"calibration": written, "target": "4bits"})
    assert taken.data is None
    with pytest.raises(InputError, match=f"data {written} is the calibration text, got text.txt too; leave one out"):
        build(CompressConfig, "compress", {"data": written, "calibration": "text.txt", "target": "4bits"})


def test_a_teacher_without_anything_to_teach_is_refused() -> None:
    with pytest.raises(InputError, match="teacher needs heal or data, which it teaches, got neither beside dense"):
        build(CompressConfig, "compress", {"target": "1GB", "teacher": "dense"})


@pytest.mark.parametrize(("candidate", "heal", "kind", "text"), [
    (BOTH, 4096, "int4", None), (BOTH, None, None, "text.txt"),
    (replace(BOTH, values="int8"), 4096, "none", None),
])  # fmt: skip
def test_a_model_healed_on_the_grid_is_packed_without_a_text(
    candidate: Candidate, heal: int | None, kind: str | None, text: str | None
) -> None:
    recipe = recipe_of(candidate, CompressConfig(target="1GB", heal=heal), MODEL, "text.txt")
    assert (recipe.heal.quantize_aware if recipe.heal else None, recipe.export.calibration) == (kind, text)


def test_what_changes_more_is_never_taken_to_lose_less() -> None:
    assert rising({0.6: -0.2, 0.7: 0.3, 0.5: -0.1}) == {0.5: 0.0, 0.6: 0.0, 0.7: 0.3}
    assert rising({"int4": 0.01, "int8": 0.02}) == {"int8": 0.02, "int4": 0.02}
    assert rising({}) == {}
    losses = AddedLosses(1.0, by_sparsity={0.5: 0.0, 0.6: 0.0})
    first, second = (candidate(share, "int4", "int4", size) for share, size in ((0.5, 214), (0.6, 196)))
    assert [each.name for each in ordered([second, first], losses)] == [first.name, second.name]


@pytest.mark.parametrize(("sequence_length", "longest"), [(64, 512), (1024, 1024)])
def test_rows_are_trained_on_up_to_the_length_of_a_sequence_and_to_512(sequence_length: int, longest: int) -> None:
    settings = CompressConfig(data="rows.jsonl", sequence_length=sequence_length)
    assert teacher_training(settings, "rows.jsonl").max_length == longest
