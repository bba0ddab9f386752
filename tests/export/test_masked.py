"""An adapter trained with sparse_adapter stays masked in shears, exported or not; other tools are warned of."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from shears.adapt.load import load_super_adapter
from shears.export.stage import export_adapter
from shears.models.load import load_with_adapter
from shears.models.sparse_adapter import is_sparse
from shears.records.artifacts import read_record
from tests.export.made import activated, half_sparse, logits, stock, super_adapter


def test_the_record_says_which_adapters_are_masked(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    for sparse in (True, False):
        adapter = super_adapter(tmp_path / f"super_{sparse}", base, sparse_adapter=sparse)
        assert is_sparse(load_super_adapter(adapter).model) is sparse
        assert is_sparse(load_with_adapter(base, adapter)[0]) is sparse


@pytest.mark.parametrize("form", ["peft", "padded"])
def test_an_exported_masked_adapter_stays_masked_here_and_warns_of_other_tools(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = half_sparse(tmp_path / "base")
    adapter = super_adapter(tmp_path / "super", base, sparse_adapter=True)
    sub = export_adapter(adapter, tmp_path / "sub", format=form)
    assert [message for message in caplog.messages if "ignore the mask; use --format merged-sparse" in message]
    assert read_record(sub, "sub_adapter.json")["sparse_adapter"] is True
    ours, _ = load_with_adapter(base, sub)
    torch.testing.assert_close(logits(ours), activated(adapter), rtol=0, atol=1e-5)
    theirs = logits(PeftModel.from_pretrained(stock(base), sub))
    assert (theirs - activated(adapter)).abs().max() > 1e-2
    out = export_adapter(sub, tmp_path / "out", format="merged-sparse")
    torch.testing.assert_close(logits(stock(out)), activated(adapter), rtol=0, atol=1e-5)
