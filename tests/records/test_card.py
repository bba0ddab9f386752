"""A card says what the record says, is read by the hub's own reader, and has the same bytes every time."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from shears.records.publishing import card

LINEARS = {"model.layers.0.self_attn.q_proj": {"shape": [4, 8], "zeros": 16, "sparsity": 0.5},
           "model.layers.1.self_attn.q_proj": {"shape": [4, 8], "zeros": 8, "sparsity": 0.25},
           "model.layers.0.mlp.experts.down_proj.3": {"shape": [2, 8], "zeros": 4, "sparsity": 0.25}}  # fmt: skip
COMMON = {"shears_version": "0.1.0", "base": "/home/someone/runs/sparse", "base_fingerprint": "f" * 64, "max_rank": 32}
RANKS = {"layers.0.up_proj": 32, "layers.1.up_proj": 16, "layers.0.q_proj+k_proj": 24, "layers.1.q_proj+k_proj": 24}
RECORDS: dict[str, dict[str, Any]] = {
    "sparsity.json": {**COMMON, "model": "org/base", "achieved": 0.375, "linears": LINEARS,
                      "calibration_fingerprint": "c",
                      "config": {"method": "wanda", "pattern": "row", "allocation": "uniform",
                                 "calibration": "text.txt"}},
    "search_space.json": {**COMMON, "alpha": 64.0, "config": {"data": "/home/someone/train.jsonl"},
                          "groups": {"layers.0.up_proj": {"ranks": [32, 24]}}},
    "sub_adapter.json": {**COMMON, "data": "train.jsonl", "ranks": RANKS},
    "recovery.json": {"shears_version": "0.1.0", "base_fingerprint": "f" * 64, "rank": 8, "kept": 0.404,
                      "linears": {"model.layers.0.self_attn.q_proj": {"rank": 8, "kept": 0.4}}},
    "merged.json": {**COMMON, "sparsity": {"before": 0.5, "after": 0.0}, "ranks": RANKS},
    "package.json": {**COMMON, "ranks": RANKS, "bytes": {"model": 156_000_000, "model_dense": 269_000_000}},
    "unpacked.json": {**COMMON, "values": "int8"},
}  # fmt: skip
ADAPTERS = ("search_space.json", "sub_adapter.json", "recovery.json")
FIGURES = [{"name": "dense", "task": "number", "data": "/home/someone/test.jsonl", "metric": "accuracy", "value": 0.5,
            "ci95": [0.4, 0.6], "n": 100}]  # fmt: skip


def checked(text: str) -> Any:
    """The card as the hub's own reader sees it."""
    return ModelCard(text)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sparsity.json", ["# org/base, sparse", "calibrated on `text.txt`)"]),
        ("search_space.json", ["trained on `train.jsonl`: every smaller", "| `up_proj` | 32/24 in all 1 layers |"]),
        ("sub_adapter.json", ["| `up_proj` | 32 in layer 0; 16 in layer 1 |", "--max-lora-rank 32"]),
        ("recovery.json", ["It restores what pruning took away",
                           'AutoModelForCausalLM.from_pretrained("sparse"), "sparse/recovery")']),
        ("merged.json", ["0.0% zeros, 50.0% before"]),
        ("package.json", ["with a LoRA adapter, packed by shears"]),
        ("unpacked.json", ["its values int8. Made by shears 0.1.0."]),
    ],
)  # fmt: skip
def test_every_card_says_what_its_record_says_and_is_read_by_the_hub(kind: str, words: list[str]) -> None:
    text = card(kind, RECORDS[kind], FIGURES)
    assert [each for each in words if each not in text] == []
    read = checked(text)
    assert read.data.library_name == ("peft" if kind in ADAPTERS else "transformers")
    assert "/home/someone" not in text
    assert text == card(kind, RECORDS[kind], FIGURES)
    assert "| dense, number | 50.0% | 40.0% to 60.0% | 100 |" in text


def test_a_masked_adapter_is_merged_and_one_on_a_grid_is_packed() -> None:
    masked = card("sub_adapter.json", {**RECORDS["sub_adapter.json"], "sparse_adapter": True})
    assert "--format merged-sparse" in masked
    packed = card("sub_adapter.json", {**RECORDS["sub_adapter.json"], "quantize_aware": "int4"})
    assert "--format package" in packed
    assert not any("PeftModel" in text for text in (masked, packed))


def test_a_name_from_a_record_cannot_become_code_that_people_copy() -> None:
    hostile = 'x")\nimport os; os.system("`touch ran`$(touch ran)'
    record = {**RECORDS["sub_adapter.json"], "base": f"/models/{hostile}", "data": "a`<img src=x>\n# b"}
    text = card("sub_adapter.json", record)
    assert "x_)_import os_ os.system(__touch ran__(touch ran)" in text
    assert not any(part in text for part in ("\nimport os", "$(", "`touch", "<img"))
