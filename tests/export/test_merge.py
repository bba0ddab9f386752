"""A merged export is one ordinary model folder that computes what base and adapter do, zeros and all if asked."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.records.artifacts import read_record, weights_fingerprint
from shears.sparsity.rewrite import in_format
from tests.export.made import activated, half_sparse, logits, mixed_ranks, stock, super_adapter, weights


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_masked_adapter_merges_exactly_and_keeps_every_zero(tmp_path: Path, name: str) -> None:
    base = half_sparse(tmp_path / "base", name)
    adapter = super_adapter(tmp_path / "super", base, sparse_adapter=True)
    ranks = mixed_ranks(tmp_path / "ranks.json", adapter)
    out = export_adapter(adapter, tmp_path / "out", format="merged-sparse", sub_adapter=str(ranks))
    torch.testing.assert_close(logits(stock(out)), activated(adapter, ranks), rtol=0, atol=1e-5)
    before, after = weights(base), weights(out)
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)
    assert sum(not torch.equal(before[name], after[name]) for name in before) == {"gpt2": 6}.get(name, 10)
    also = export_adapter(adapter, tmp_path / "also", format="merged", sub_adapter=str(ranks))
    assert weights_fingerprint(also) == weights_fingerprint(out)


@pytest.mark.parametrize("name", ["llama"])
def test_a_plain_adapter_merges_exactly_and_says_what_is_lost(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = half_sparse(tmp_path / "base", name)
    adapter = super_adapter(tmp_path / "super", base)
    with caplog.at_level(logging.WARNING):
        out = export_adapter(adapter, tmp_path / "out", format="merged", sub_adapter="maximal")
    torch.testing.assert_close(logits(stock(out)), activated(adapter, "maximal"), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(stock(out)), logits(PeftModel.from_pretrained(stock(base), adapter)))
    figures = read_record(out, "merged.json")["sparsity"]
    assert (0.45 < figures["before"] < 0.55, figures["after"]) == (True, 0.0)
    fall = f"{100 * figures['before']:.1f} % to 0.0 %"
    lost = f"the merge lowers the sparsity from {fall}; use --format merged-sparse to keep it"
    assert lost in caplog.messages


@given(st.integers(0, 999), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_values_are_rounded_but_never_to_zero(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(5, 7, generator=generator) * 10.0 ** torch.randint(-45, 3, (5, 7), generator=generator)
    values[0, 0] = 0.0
    kept = torch.rand(5, 7, generator=generator) < 0.5
    found, tiny = in_format(values, kept, dtype), torch.finfo(dtype).tiny
    assert found.dtype == dtype
    assert torch.equal(found != 0, kept)
    rounds = kept & (values.to(dtype) != 0)
    assert torch.equal(found[rounds], values.to(dtype)[rounds])
    assert (found[kept & ~rounds].abs() == tiny).all()
    nonzero = kept & (values != 0)
    assert torch.equal(found[nonzero] > 0, values[nonzero] > 0)


def test_an_exported_sub_adapter_merges_to_the_same_bytes(tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base", "gpt2")
    adapter = super_adapter(tmp_path / "super", base)
    ranks = str(mixed_ranks(tmp_path / "ranks.json", adapter))
    direct = export_adapter(adapter, tmp_path / "direct", format="merged", sub_adapter=ranks)
    for form in ("peft", "padded"):
        sub = export_adapter(adapter, tmp_path / form, format=form, sub_adapter=ranks)
        out = export_adapter(sub, tmp_path / f"of_{form}", format="merged")
        for name, tensor in load_file(direct / "model.safetensors").items():
            torch.testing.assert_close(load_file(out / "model.safetensors")[name], tensor, rtol=0, atol=1e-6)
        records = [read_record(folder, "merged.json") for folder in (direct, out)]
        for key in ("ranks", "super_adapter_fingerprint", "ranks_fingerprint", "base_fingerprint", "template"):
            assert records[0][key] == records[1][key]
        assert records[1]["sub_adapter_fingerprint"] == weights_fingerprint(sub)
    with pytest.raises(InputError, match="an exported adapter has fixed ranks, got sub_adapter=minimal"):
        export_adapter(tmp_path / "peft", tmp_path / "no", format="merged", sub_adapter="minimal")
