"""A model read and written part by part is the model that from_pretrained reads and save_pretrained writes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from shears.checkpoints.tensor_files import TensorWriter
from shears.models.sources import Skeleton
from tests.parts import ARCHITECTURES, BF16, FP32, assert_same, block_names, copied, reference, save


def names_below(skeleton: Skeleton, prefix: str) -> list[str]:
    return [name for name, _ in skeleton.model.get_submodule(prefix).named_parameters(prefix=prefix)]


@pytest.mark.parametrize(("stored", "dtype"), [(FP32, None), (BF16, FP32)], ids=["fp32", "bf16 as fp32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_skeleton_with_all_parts_is_what_from_pretrained_gives(
    name: str, stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    save(tmp_path, name, stored)
    expected, skeleton = reference(tmp_path, dtype or "auto"), Skeleton.open(tmp_path, dtype)
    skeleton.load_rest()
    for block in block_names(skeleton):
        skeleton.load(block)
    assert not skeleton.model.training
    assert_same(expected.state_dict(), skeleton.model.state_dict())
    assert_same(dict(expected.named_buffers()), dict(skeleton.model.named_buffers()))
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(expected(ids, use_cache=False).logits, skeleton.model(ids, use_cache=False).logits)


@pytest.mark.parametrize(("stored", "dtype"), [(FP32, None), (BF16, FP32)], ids=["fp32", "bf16 as fp32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_that_come_and_go_leave_the_same_files(
    name: str, stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    save(tmp_path / "m", name, stored)
    skeleton = Skeleton.open(tmp_path / "m", dtype)
    writer = TensorWriter(skeleton.files, copied(tmp_path / "m", tmp_path / "out"))
    put: set[str] = set()
    for block in block_names(skeleton):
        skeleton.load(block)
        skeleton.store(names_below(skeleton, block), writer)
        put.update(tensor for key, _ in skeleton.model.get_submodule(block).named_parameters(prefix=block)
                   for tensor in skeleton.disk_names(key))  # fmt: skip
        skeleton.evict(block)
    assert writer.written == put  # so that the copy at the end cannot have done it
    assert len(put) > len(skeleton.files.names) / 2
    writer.finish()
    for path in (tmp_path / "m").glob("*.safetensors*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_only_the_rest_and_one_block_are_in_memory(tmp_path: Path) -> None:
    model = save(tmp_path, "mixtral")
    skeleton = Skeleton.open(tmp_path)

    def alive(module: nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if not p.is_meta)

    assert alive(skeleton.model) == 0
    skeleton.load_rest()
    blocks = block_names(skeleton)
    each = {block: sum(p.nbytes for p in model.get_submodule(block).parameters()) for block in blocks}
    rest = sum(p.nbytes for p in model.parameters()) - sum(each.values())
    assert alive(skeleton.model) == rest
    for block in blocks:
        skeleton.load(block)
        assert alive(skeleton.model) == rest + each[block]
        skeleton.evict(block)
        assert alive(skeleton.model) == rest
