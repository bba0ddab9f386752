"""The kernels' walks: no choice changes a bit, and choices are measured once for a machine."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shears.checkpoints.packed_layout import NumberFormat, pack
from shears.runtime.native import kernels_available

if not kernels_available():
    pytest.skip("the extension was not built", allow_module_level=True)
from shears.runtime.native import _native, tuning
from shears.runtime.native.model_source import DenseRows
from tests.runtime.native.products import KernelMatrix, multiply

ROWS, COLS = 83, 301  # neither whole panels nor whole groups
KINDS: list[tuple[NumberFormat, bool]] = [(values, sparse) for values in tuning.CODES for sparse in (True, False)]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SHEARS_TUNING")
    monkeypatch.setattr(tuning, "SMALLEST_WEIGHT", 1 << 20)
    monkeypatch.setattr(tuning, "LARGEST_WEIGHT", 1 << 20)
    monkeypatch.setattr(tuning, "SECONDS", 0.001)
    tuning.tune.cache_clear()
    tuning.is_dense_faster.cache_clear()
    yield
    tuning.tune.cache_clear()
    tuning.is_dense_faster.cache_clear()
    _native.forget_choices()


def a_matrix(values: NumberFormat, sparse: bool) -> KernelMatrix:
    weight = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0))
    weight[torch.rand(ROWS, COLS, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    return KernelMatrix(pack(weight, values) if sparse else DenseRows(weight).as_values(values))


@pytest.mark.parametrize(("values", "sparse"), KINDS)
def test_every_walk_with_the_same_sums_gives_the_same_bits(values: NumberFormat, sparse: bool) -> None:
    matrix, pool = a_matrix(values, sparse), _native.Pool(2)
    for number, tokens in enumerate((1, 2, 4, 7, 13, 70)):
        x = torch.randn(tokens, COLS, generator=torch.Generator().manual_seed(tokens))
        results: dict[str, torch.Tensor] = {}
        for name in _native.candidates(tuning.CODES[values], sparse, number):
            assert _native.choose(tuning.CODES[values], sparse, number, name)
            assert _native.chosen(tuning.CODES[values], sparse, number) == name
            y = multiply(matrix, x, pool)
            assert torch.equal(y, results.setdefault(tuning.sums_of(name, values), y)), (name, tokens)


def test_the_default_stays_unless_another_walk_is_clearly_faster() -> None:
    default, rival, other = "avx512 panels=2", "avx512 panels=1", "avx2 panels=1"
    assert tuning.best_of([(default, 1.0), (rival, 0.98), (other, 0.9)], "int8") == default
    assert tuning.best_of([(default, 1.0), (rival, 0.96), (other, 0.9)], "int8") == rival
    assert tuning.best_of([(default, 1.0), (rival, 0.96), (other, 0.8)], "int8") == other


@pytest.mark.parametrize(("values", "few", "many"), [("bf16", "amx a", "amx a"), ("int8", "avx512 a", "amx a")])
def test_numbers_of_tokens_in_steps_have_the_same_sums(values: NumberFormat, few: str, many: str) -> None:
    """bf16 is added in another order by AMX, integers are not."""
    timed = [[("avx512 a", 1.0), ("amx a", 1.1)], [("avx512 a", 1.0), ("amx a", 0.3)]]
    same = tuning.with_same_sums(timed, values)
    assert [tuning.best_of(one, values) for one in same] == [few, many]
    slower = [[("avx512 a", 1.0), ("amx a", 1.2)], [("avx512 a", 1.0), ("amx a", 0.8)]]
    assert tuning.best_of(tuning.with_same_sums(slower, "bf16")[1], "bf16") == "avx512 a"


def test_cached_walks_whose_sums_differ_in_steps_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.tune("bf16", True)
    path = tuning.cache_file()
    known = json.loads(path.read_text())
    names = known["choices"]["bf16 sparse"]
    own = names[-1].split()[0]
    others = [name for name in _native.candidates(tuning.CODES["bf16"], True, 5) if name.split()[0] != own]
    if not others:
        pytest.skip("one instruction set only")
    known["choices"]["bf16 sparse"] = [*names[:-1], others[0]]
    path.write_text(json.dumps(known))
    tuning.tune.cache_clear()
    monkeypatch.setattr(tuning, "best_walks", lambda *_: names)
    tuning.tune("bf16", True)
    assert json.loads(path.read_text())["choices"]["bf16 sparse"] == names


def test_a_second_process_reads_the_choices_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.tune("int8", True)
    chosen = [_native.chosen(tuning.CODES["int8"], True, number) for number in range(_native.TOKEN_CLASSES)]
    assert json.loads(tuning.cache_file().read_text())["choices"] == {"int8 sparse": chosen}
    tuning.tune.cache_clear()
    _native.forget_choices()
    monkeypatch.setattr(tuning, "best_walks", lambda *_: pytest.fail("measured again"))
    tuning.tune("int8", True)
    assert [_native.chosen(tuning.CODES["int8"], True, number) for number in range(_native.TOKEN_CLASSES)] == chosen


@pytest.mark.parametrize(("dense_ps", "is_dense"), [(9.0, True), (11.0, False)])
def test_zeros_are_stored_where_that_was_measured_to_be_faster(
    dense_ps: float, is_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = str(_native.features()["isa"])
    _native.select_isa("portable")
    calls = []

    def speed(code: int, sparse: bool, *_: Any) -> list[float]:
        calls.append(sparse)
        return [(10.0 if sparse else dense_ps) * 1e-12, 1.0, 1e9]

    monkeypatch.setattr(_native, "measure_speed", speed)
    try:
        assert tuning.is_dense_faster("int8", 3) == is_dense
        tuning.is_dense_faster.cache_clear()
        assert tuning.is_dense_faster("int8", 3) == is_dense
        assert calls == [True, False]  # then the cache of the machine is asked
    finally:
        _native.select_isa(before)
