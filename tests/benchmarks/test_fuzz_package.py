"""Mutated packages are refused in one line or read within their bounds; the whole run is benchmarks.fuzz_package."""

import dataclasses
from pathlib import Path

import pytest
import torch
from benchmarks.fuzz_package import check_bounds, outcome, run_batch
from benchmarks.mutations import SEEDS, mutated, with_fingerprint, write_seed

from shears.checkpoints.packed.file import read_package
from shears.checkpoints.packed.layout import PackedMatrix, pack


def test_no_mutation_of_two_thousand_is_read_wrongly() -> None:
    found = run_batch(0, 2000, None)
    assert sum(found.values()) == 2000
    accepted = found["accepted, and within its bounds"]
    assert 100 < accepted < 1500  # neither all nor nothing gets through, or the mutations are of no use
    assert len(found) > 10  # refused for many reasons


def test_unmutated_packages_are_accepted_and_their_fingerprint_is_right(tmp_path: Path) -> None:
    for number in range(len(SEEDS)):
        data = write_seed(tmp_path / str(number), number)
        assert with_fingerprint(data) == data
        assert outcome(data, tmp_path / str(number), verify=True) == "accepted, and within its bounds"


def test_a_mutation_is_a_function_of_its_number(tmp_path: Path) -> None:
    seeds = [write_seed(tmp_path / str(number), number) for number in range(len(SEEDS))]
    assert mutated(seeds, 5) == mutated(seeds, 5)
    assert len({mutated(seeds, number) for number in range(50)}) > 40


def test_the_check_sees_what_lies_outside(tmp_path: Path) -> None:
    write_seed(tmp_path, 1)
    matrix = read_package(tmp_path).packed["layers.0.up"]
    check_bounds(matrix)
    larger = pack(torch.ones(48, 10).index_fill_(1, torch.arange(5), 0.0), "bf16")
    with pytest.raises(AssertionError):
        check_bounds(PackedMatrix(33, 9, "bf16", larger.masks, larger.values, larger.offsets, None))
    with pytest.raises(AssertionError):
        check_bounds(PackedMatrix(33, 9, "bf16", matrix.masks, matrix.values[:-1], matrix.offsets, None))
    whole = pack(torch.ones(48, 12), "int8")
    check_bounds(whole)
    with pytest.raises(AssertionError):
        check_bounds(dataclasses.replace(whole, values=whole.values[:-1]))
