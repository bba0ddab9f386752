"""Hidden states are read as they were written, for any budget, and no file stays."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.config import SparsifyConfig
from shears.config.notation import num_bytes
from shears.errors import InputError
from shears.models.blockwise.activations import Activations

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


def in_memory(activations: Activations) -> int:
    """Return the bytes really held."""
    return sum(tensor.numel() * tensor.element_size() for tensor in activations._kept.values())


@settings(max_examples=60)
@given(
    budget=st.one_of(st.none(), st.integers(0, 400)),
    steps=st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 40), st.sampled_from(DTYPES)), min_size=1, max_size=15),
)
def test_any_sequence_of_writes_reads_back_within_the_budget(
    budget: int | None, steps: list[tuple[int, int, torch.dtype]]
) -> None:
    expected: list[Tensor] = []
    with Activations(budget) as activations:
        for number, (index, size, dtype) in enumerate(steps):
            tensor = (torch.arange(size) + number).to(dtype)
            if 0 <= index < len(expected):
                activations[index] = expected[index] = tensor
            else:
                activations.append(tensor)
                expected.append(tensor)
            assert len(activations) == len(expected)
            assert budget is None or in_memory(activations) <= budget
            for read in (list(activations), [activations[at] for at in range(len(expected))]):
                assert all(torch.equal(*pair) for pair in zip(read, expected, strict=True))
                assert [tensor.dtype for tensor in read] == [tensor.dtype for tensor in expected]
        assert budget is not None or activations.num_spilled == 0


def test_tensors_within_the_budget_stay_in_memory(tmp_path: Path) -> None:
    tensors = [torch.full((2, 3), float(number)) for number in range(5)]  # 24 bytes each
    with Activations(72, tmp_path) as activations:
        for tensor in tensors:
            activations.append(tensor)
        assert activations.num_spilled == 2
        assert activations[1] is tensors[1]
        activations[0] = torch.zeros(4, 6)  # 96 bytes: goes to the disk and makes room
        assert activations.num_spilled == 3
        activations[4] = tensors[4]
        assert activations.num_spilled == 2
        assert in_memory(activations) == 72


@pytest.mark.parametrize("budget", [0, 10**6])
def test_bf16_and_strided_tensors_come_back_bitwise(budget: int, tmp_path: Path) -> None:
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    values[0, 0, 0], values[0, 0, 1] = torch.inf, -0.0
    with Activations(budget, tmp_path) as activations:
        activations.append(values.transpose(0, 2))
        activations.append(values[1:, ::2])
        for found, wanted in zip(activations, (values.transpose(0, 2), values[1:, ::2]), strict=True):
            assert found.dtype == torch.bfloat16
            assert torch.equal(found.contiguous().view(torch.int16), wanted.contiguous().view(torch.int16))


def test_files_lie_in_the_folder_given_and_go_at_the_end(tmp_path: Path) -> None:
    with Activations(0, tmp_path) as activations:
        assert not list(tmp_path.iterdir())  # nothing before it is needed
        activations.append(torch.ones(3))
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 1
    assert not list(tmp_path.iterdir())
    activations.close()  # twice is fine


def test_files_go_after_an_error_too(tmp_path: Path) -> None:
    def fail() -> None:
        with Activations(0, tmp_path) as activations:
            activations.append(torch.ones(3))
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_file_is_overwritten(tmp_path: Path) -> None:
    with Activations(0, tmp_path) as activations:
        activations.append(torch.ones(3))
        for number in range(4):
            activations[0] = torch.full((5,), float(number))
        assert torch.equal(activations[0], torch.full((5,), 3.0))
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("1000000", 10**6), ("12B", 12), ("2GB", 2 * 10**9), ("2 GB", 2 * 10**9), ("1.5G", 1_500_000_000),
        ("512MiB", 512 * 2**20), ("512 Mi", 512 * 2**20), ("1kB", 1000), ("1KB", 1000), ("1KiB", 1024), ("1ki", 1024),
        ("0.5TiB", 2**39), ("3T", 3 * 10**12), (" 7M ", 7 * 10**6),
    ],
)  # fmt: skip
def test_sizes(text: str, number: int) -> None:
    assert num_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "2 gigabytes", "1iB", "2gb", "1.GB", ".5GB", "2PB", "1 2GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="must be a number with a unit such as 2GB or 512MiB, got "):
        num_bytes(text)
    with pytest.raises(ValueError, match="activation_budget"):
        SparsifyConfig(activation_budget=text)


@settings(max_examples=50)
@given(number=st.integers(0, 10**6), point=st.booleans(), unit=st.from_regex(r" ?([kKMGT]i?)?B?", fullmatch=True))
def test_every_size_of_the_recipe_is_understood(number: int, point: bool, unit: str) -> None:
    text = f"{number}{'.5' if point else ''}{unit}"
    assert num_bytes(SparsifyConfig(activation_budget=text).activation_budget) >= number
