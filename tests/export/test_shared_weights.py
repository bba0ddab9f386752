"""Blocks that share a weight (Zamba): an adapter for each is fine beside it, and cannot be merged into it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from shears.errors import InputError
from shears.export.stage import export_adapter
from tests.export.made import activated, half_sparse, logits, stock, super_adapter


@pytest.mark.parametrize(("format_", "masked"), [("merged", False), ("merged-sparse", True), ("package", True)])
def test_two_adapters_of_one_shared_weight_are_not_merged_into_it(tmp_path: Path, format_: str, masked: bool) -> None:
    base = half_sparse(tmp_path / "base", "zamba2")
    adapter = super_adapter(tmp_path / "super", base, sparse_adapter=masked)
    with pytest.raises(InputError, match=r"layers\.\d\S+ shares its with \S+layers\.\d\S+; export peft"):
        export_adapter(adapter, tmp_path / "out", format=format_)
    assert not (tmp_path / "out").exists()
    out = export_adapter(adapter, tmp_path / "peft", format="peft", ranks="maximal")
    if not masked:
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(stock(base), out)), activated(adapter, "maximal"), rtol=0, atol=1e-5
        )
