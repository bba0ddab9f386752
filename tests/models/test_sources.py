"""A model read and written part by part is the model that from_pretrained reads and save_pretrained writes."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

from shears.checkpoints.tensor_files import TensorWriter
from shears.models.sources import StreamedModel
from tests.parts import ARCHITECTURES, BF16, FP32, assert_same, block_names, copied, reference, save


@pytest.mark.parametrize(("stored", "dtype"), [(FP32, None), (BF16, FP32)], ids=["fp32", "bf16 as fp32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_read_in_parts_is_what_from_pretrained_gives_and_leaves_the_same_files(
    name: str, stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    save(tmp_path / "m", name, stored)
    expected, source = reference(tmp_path / "m", dtype or "auto"), StreamedModel(tmp_path / "m", dtype)
    source.writer = TensorWriter(source.files, copied(tmp_path / "m", tmp_path / "out"))
    put: set[str] = set()
    with ExitStack() as parts:
        for index, block in enumerate(block_names(source)):
            names = [name for name, _ in parts.enter_context(source.opened(index)).named_parameters(prefix=block)]
            source.keep(names)
            put.update(tensor for name in names for tensor in source.disk_names(name))
        assert not source.model.training
        assert_same(expected.state_dict(), source.model.state_dict())
        assert_same(dict(expected.named_buffers()), dict(source.model.named_buffers()))
        ids = torch.arange(24).reshape(2, 12)
        with torch.no_grad():
            assert torch.equal(expected(ids, use_cache=False).logits, source.model(ids, use_cache=False).logits)
    assert source.writer.written == put  # so that the copy at the end cannot have done it
    assert len(put) > len(source.files.names) / 2
    source.writer.finish()
    for path in (tmp_path / "m").glob("*.safetensors*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_only_the_rest_and_one_block_are_in_memory(tmp_path: Path) -> None:
    model = save(tmp_path, "mixtral")
    source = StreamedModel(tmp_path)

    def alive(module: nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if not p.is_meta)

    each = {block: sum(p.nbytes for p in model.get_submodule(block).parameters()) for block in block_names(source)}
    rest = sum(p.nbytes for p in model.parameters()) - sum(each.values())
    assert alive(source.model) == rest
    for index, size in enumerate(each.values()):
        with source.opened(index):
            assert alive(source.model) == rest + size
        assert alive(source.model) == rest
