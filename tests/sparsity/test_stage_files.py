"""What a sparse model's files hold beside its zeros: the numbers of a smaller format, the base's own tokenizer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from shears.errors import InputError
from shears.models.load import load_tokenizer
from shears.sparsity.stage import sparsify
from tests.tiny import save_tiny, tiny_tokenizer

SMALL = {"num_samples": 4, "sequence_length": 32}


def _with_weights(folder: Path, changes: dict[str, torch.Tensor]) -> str:
    """A tiny model whose weights begin with these values."""
    save_tiny(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, values in changes.items():
        tensors[name].view(-1)[: len(values)] = values
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_weights_too_small_for_fp16_are_no_zeros_there(tmp_path: Path, text: str) -> None:
    """An additional zero would make `check_saved` refuse the files."""
    name = "model.layers.0.mlp.up_proj.weight"
    base = _with_weights(tmp_path / "base", {name: torch.linspace(-5e-8, 5e-8, 32)})
    folder = sparsify(base, tmp_path / "sparse", calibration=text, dtype="fp16", **SMALL)
    weight, dense = load_file(folder / "model.safetensors")[name], load_file(Path(base) / "model.safetensors")[name]
    assert weight.dtype == torch.float16
    assert int((weight == 0).sum()) == weight.numel() // 2
    kept = weight != 0
    torch.testing.assert_close(weight[kept].float(), dense[kept], rtol=1e-3, atol=2**-24)
    assert torch.equal(weight[kept].sign(), dense[kept].sign().half())


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_weights_too_large_for_fp16_are_refused(tmp_path: Path, text: str, name: str) -> None:
    base = _with_weights(tmp_path / "base", {name: torch.full((9,), 7e4)})
    with pytest.raises(InputError, match=f"dtype fp16 holds numbers up to 65,504, {name} has 70,000"):
        sparsify(base, tmp_path / "sparse", calibration=text, dtype="fp16", **SMALL)
    assert not any(tmp_path.glob("sparse*"))


def test_a_tokenizer_without_padding_stays_without(tmp_path: Path, text: str) -> None:
    """A model trained with the end of sequence as masked padding would not learn to end."""
    base = save_tiny(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    folder = sparsify(str(base), tmp_path / "sparse", calibration=text, **SMALL)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    assert load_tokenizer(folder).pad_token == load_tokenizer(folder).eos_token
