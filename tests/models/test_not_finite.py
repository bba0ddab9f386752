"""Weights that are not finite are named, with their model, by every verb that computes from them."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shears.adapt.train import train
from shears.checkpoints.tensor_files import refuse_non_finite
from shears.errors import InputError
from shears.evaluation.run import evaluate
from shears.models.load import load_with_adapter
from shears.searching.study import search
from shears.sparsity.sparsify import sparsify
from shears.training.heal import heal
from shears.writing.written import write
from tests.tiny import save_tiny
from tests.training.conftest import write_data
from tests.training.small_healing import SETTINGS as HEALING
from tests.training.small_healing import prune
from tests.training.small_training import SETTINGS

ODD = (float("nan"), float("inf"), -float("inf"))
PLACES = {"a linear": "model.layers.1.mlp.up_proj.weight", "a norm": "model.norm.weight"}


def spoil(folder: Path, name: str, value: float, file: str = "model.safetensors") -> None:
    """Put a number into one tensor of a folder."""
    tensors = load_file(folder / file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})


def models(folder: Path, spoilt: str, name: str, value: float) -> None:
    """Save a dense model, a sparse one and data; one of the models has the number in one tensor."""
    for model in ("dense", "sparse"):
        save_tiny(folder / model)
    prune(folder / "sparse")
    write_data(folder)
    (folder / "text.txt").write_text("words that are plain. " * 40)
    spoil(folder / spoilt, name, value)


def training(folder: Path, **more: Any) -> Path:
    settings = {**SETTINGS, "max_steps": 2, "data": str(folder / "train.jsonl"), **more}
    return train(folder / "sparse", folder / "out", **settings)


def healing(folder: Path, **more: Any) -> Path:
    settings = {**HEALING, "teacher": str(folder / "dense"), "data": str(folder / "text.txt"), **more}
    return heal(folder / "sparse", folder / "out", **settings)


VERBS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "train": ("sparse", training),
    "train with a kept teacher": ("dense", lambda folder: training(folder, teacher=str(folder / "dense"))),
    "heal": ("sparse", healing),
    "heal with a teacher": ("dense", healing),
    "sparsify": ("dense", lambda folder: sparsify(
        folder / "dense", folder / "out", calibration=str(folder / "text.txt"), num_samples=4, sequence_length=16
    )),
    "write": ("dense", lambda folder: write(folder / "dense", folder / "out", tokens=100)),
    "evaluate": ("dense", lambda folder: evaluate(
        folder / "dense", task="perplexity", data=str(folder / "text.txt"), sequence_length=16, device="cpu"
    )),
}  # fmt: skip


@pytest.mark.parametrize(("verb", "place"), list(zip(VERBS, ["a linear", "a norm"] * len(VERBS), strict=False)))
def test_every_verb_names_model_and_tensor_and_leaves_nothing(verb: str, place: str, tmp_path: Path) -> None:
    spoilt, call = VERBS[verb]
    models(tmp_path, spoilt, PLACES[place], ODD[len(verb) % 3])
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=rf"weights must be finite, {PLACES[place]} of \S*{spoilt} holds NaN or inf"):
        call(tmp_path)
    assert set(tmp_path.iterdir()) == before


def test_search_and_load_name_an_adapter_that_is_not_finite(tmp_path: Path) -> None:
    models(tmp_path, "dense", PLACES["a norm"], 1.0)
    adapter = training(tmp_path)
    name = next(iter(load_file(adapter / "adapter_model.safetensors")))
    spoil(adapter, name, ODD[0], "adapter_model.safetensors")
    (adapter / "search_space.json").unlink()  # its fingerprint would tell first
    with pytest.raises(InputError, match=r"weights must be finite, \S*lora_\S* of \S*out holds NaN"):
        load_with_adapter(tmp_path / "sparse", adapter)
    with pytest.raises(InputError):
        search(adapter, tmp_path / "searched", data=str(tmp_path / "train.jsonl"))


@given(
    values=st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), max_size=5),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2)),
)
def test_refuse_non_finite_is_isfinite(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    tensors = [("a", torch.ones(2)), ("n", torch.ones(2, dtype=torch.int8)), ("b", tensor)]
    finite = bool(tensor.float().isfinite().all())
    with nullcontext() if finite else pytest.raises(InputError, match="b of m holds NaN"):
        refuse_non_finite("m", tensors)
