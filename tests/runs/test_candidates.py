"""Bounds are read as they are written, the order follows its rule, and a recipe has the stages that are asked for."""

from pathlib import Path
from typing import Any

import pytest

from shears.config import CompressConfig
from shears.config.compress_options import Bound
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.ref import ModelRef
from shears.runs.candidates import Amounts, Candidate, best, efforts, following, meeting, recipe_of

WEIGHTS = 1000
MODEL = ModelRef(Path("model"), "model")
TEXT = Path("text.txt")


def candidate(sparsity: float, values: Any, embeddings: str, size: int, speed: float | None = None) -> Candidate:
    return Candidate(sparsity, values, embeddings, size, 8 * size / WEIGHTS, speed)


DENSE = candidate(0.0, "bf16", "keep", 2000, 10.0)
HALF = candidate(0.5, "bf16", "keep", 1200, 14.0)
FOUR = candidate(0.0, "int4", "keep", 650, 20.0)
BOTH = candidate(0.5, "int4", "int4", 400, 30.0)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("3.3bits", "bits", 3.3), ("4 bits", "bits", 4.0), ("1.0GB", "bytes", 1e9), ("300 MB", "bytes", 3e8),
        ("650B", "bytes", 650.0), ("93.5tok/s", "tokens/s", 93.5),
    ],
)  # fmt: skip
def test_a_target_has_a_kind_and_an_amount(text: str, kind: str, amount: float) -> None:
    assert Bound.parse(text) == Bound(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"target": text}, r"compress\.target must be") for text in ("", "3", "fast", "-1GB", "0GB", "40 words/s")),
        *(
            ({"time": text}, r"compress\.time must be quick, usual, thorough or a time")
            for text in ("", "2", "soon", "0h", "2 days")
        ),
        ({"data": None}, "data or calibration must be given"),
        ({"calibration": "text.txt"}, "data or calibration must be given"),
    ],
)
def test_an_unreadable_option_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        build(CompressConfig, "compress", {"target": "1GB", "data": "rows.jsonl", **changes})
    assert len(refused.value.messages) == 1


def test_a_bound_is_met_from_its_own_side() -> None:
    assert [Bound("bytes", float(size)).holds(400, WEIGHTS, None) for size in (400.0, 399.0)] == [True, False]
    assert [Bound("bits", bits).holds(400, WEIGHTS, None) for bits in (3.2, 3.1)] == [True, False]
    assert [Bound("tokens/s", 30.0).holds(400, WEIGHTS, speed) for speed in (30.0, 29.9, None)] == [True, False, False]


def test_a_target_out_of_reach_names_the_nearest_candidate() -> None:
    with pytest.raises(
        InputError, match=r"meet the target \(at most 0.000 GB\); the nearest of 3 .* s50-int4-int4 with 4e"
    ):
        meeting(Bound.parse("300B"), [HALF, BOTH, FOUR], WEIGHTS)
    with pytest.raises(InputError, match=r"nearest of 2 candidates is s0-int4 with .*20\.0 tokens/s"):
        meeting(Bound.parse("99tok/s"), [HALF, FOUR], WEIGHTS)
    assert meeting(Bound.parse("650B"), [DENSE, FOUR, BOTH], WEIGHTS) == [FOUR, BOTH]


def test_the_next_candidate_is_chosen_by_how_wrong_the_last_prediction_was() -> None:
    bound = Bound.parse("20tok/s")
    order = [FOUR, candidate(0.5, "int8", "keep", 700, 21.0), BOTH]
    missed = {"name": FOUR.name, "bytes": 650, "tokens_per_second": 16.0, "holds": False}  # 0.8 of what was predicted
    assert following(order, [], bound, WEIGHTS) == FOUR
    assert following(order, [missed], bound, WEIGHTS) == BOTH  # 21 x 0.8 would miss again, 30 x 0.8 would not
    assert following(order, [{**missed, "tokens_per_second": 5.0}], bound, WEIGHTS) is None
    assert following(order, [{**missed, "holds": True}], bound, WEIGHTS) is None


def test_the_package_with_the_most_right_answers_is_chosen_of_those_that_hold() -> None:
    rows = [("a", 9, 0.5, True), ("b", 7, 0.5, True), ("c", 1, 0.9, False), ("d", 2, 0.4, True)]
    packages = [
        {"name": name, "bytes": size, "answers": {"accuracy": right}, "holds": holds}
        for name, size, right, holds in rows
    ]
    assert best(packages) == "b"
    assert best(packages[2:3]) is None


def test_the_recipe_has_a_stage_for_what_is_asked_alone() -> None:
    trained = efforts(Amounts(320, 100.0, 32_000, 3_000, 30))["usual"]
    recipe = recipe_of(BOTH, trained, MODEL, TEXT, Path("dense"))
    assert (recipe.sparsify.sparsity, recipe.sparsify.method, recipe.heal) == (0.5, "admm", None)
    assert recipe.train is not None
    assert (recipe.train.quantize_aware, recipe.train.ranks) == ("int4", (32,))  # merged: no rank to choose
    assert (recipe.train.teacher, recipe.train.max_steps, recipe.train.data) == ("dense", 120, "text.txt")
    assert recipe.train.for_base(10**9, 0.5, False).alpha == 128  # half of the product is masked
    assert (recipe.export.format, recipe.export.dtype, recipe.export.embedding_dtype) == ("package", "int4", "int4")
    assert recipe.export.calibration is None
    dense = recipe_of(FOUR, trained, MODEL, TEXT, None)
    assert dense.train is not None
    assert (dense.train.quantize_aware, dense.export.calibration) == ("none", "text.txt")  # rounded after its training
    half = recipe_of(HALF, trained, MODEL, TEXT, None).train
    assert half is not None
    assert (half.sparse_adapter, half.teacher) == (True, None)


def test_without_rows_a_sparse_model_is_healed_and_a_dense_one_rounded_with_the_text() -> None:
    effort = efforts(Amounts(0, 0.0, 32_000, 3_000, 0))["usual"]
    sparse, dense = (recipe_of(each, effort, MODEL, TEXT, None) for each in (BOTH, FOUR))
    assert sparse.heal is not None
    assert (sparse.heal.tokens, sparse.heal.quantize_aware, sparse.export.calibration) == (100_000, "int4", None)
    assert (dense.heal, dense.train, dense.sparsify.method) == (None, None, "magnitude")
    assert dense.export.calibration == "text.txt"
    eight = recipe_of(candidate(0.5, "int8", "keep", 700), effort, MODEL, TEXT, None)
    assert eight.heal is not None
    assert (eight.heal.quantize_aware, eight.export.calibration) == ("none", None)
