"""A card says what the record says, is read by the hub's own reader, and has the same bytes every time."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from shears.records.card import HubLocation, card, hub_base, published, title, write_card
from shears.records.figures import table

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


@pytest.mark.parametrize("kind", RECORDS)
def test_every_card_is_read_by_the_hub_and_names_no_folder_of_a_machine(kind: str) -> None:
    text = card(kind, RECORDS[kind], FIGURES)
    read = checked(text)
    assert read.text.strip().startswith(f"# {title(kind, RECORDS[kind])}")
    assert read.data.library_name == ("peft" if kind in ADAPTERS else "transformers")
    assert read.data.eval_results[0].metric_value == 0.5
    assert "/home/someone" not in text
    assert text == card(kind, RECORDS[kind], FIGURES)
    assert ",," not in card(kind, {**RECORDS[kind], "data": "train.jsonl"})
    assert "| dense | number | 50.0% | 40.0% to 60.0% | 100 |" in text


def test_the_metadata_holds_the_figure_of_the_artifact_alone() -> None:
    own = {**FIGURES[0], "name": "own", "value": 0.7}
    text = card("sub_adapter.json", RECORDS["sub_adapter.json"], [*FIGURES, own])
    assert [result.metric_value for result in checked(text).data.eval_results] == [0.7]
    assert "| dense |" in text


def test_a_card_names_test_questions_seen_in_training() -> None:
    details = {"accuracy_strict": 0.4, "accuracy_strict_low": 0.3, "accuracy_strict_high": 0.5, "seen_in_training": 3.0,
               "accuracy_unseen": 0.25}  # fmt: skip
    text = card("sub_adapter.json", RECORDS["sub_adapter.json"], [*FIGURES, {**FIGURES[0], "details": details}])
    assert "| 95 % interval | n | accuracy strict |" in text
    assert "| dense | number | 50.0% | 40.0% to 60.0% | 100 | 40.0% (30.0% to 50.0%) |" in text
    assert (
        "3 of the 100 test questions stand in the training data of dense; on the others its accuracy is 25.0%" in text
    )


def test_lm_evals_accuracies_are_percentages_too() -> None:
    text = card("sparsity.json", RECORDS["sparsity.json"], [{**FIGURES[0], "metric": "acc_norm"}])
    assert "| dense | number | 50.0% | 40.0% to 60.0% | 100 |" in text


def test_a_sparse_model_says_where_its_zeros_are() -> None:
    text = card("sparsity.json", RECORDS["sparsity.json"])
    assert "| q_proj | 64 | 37.5% |" in text
    assert "| down_proj | 16 | 25.0% |" in text
    assert "calibrated on `text.txt`" in text
    assert checked(text).data.base_model == "org/base"


def test_an_adapter_says_its_ranks_and_how_to_serve_it() -> None:
    text = card("sub_adapter.json", RECORDS["sub_adapter.json"])
    assert "| `up_proj` | 32 in layer 0; 16 in layer 1 |" in text
    assert "| `q_proj+k_proj` | 24 in all 2 layers |" in text
    assert "--max-lora-rank 32" in text
    for rank, largest in ((4, 8), (24, 32), (512, 512), (600, 600)):  # vLLM takes some ranks only
        assert f"--max-lora-rank {largest} " in card(
            "sub_adapter.json", {**RECORDS["sub_adapter.json"], "max_rank": rank}
        )
    assert checked(text).data.base_model is None  # a folder of a machine is no base on the hub
    masked = card("sub_adapter.json", {**RECORDS["sub_adapter.json"], "sparse_adapter": True})
    assert "merged-sparse" in masked
    assert "PeftModel" not in masked


def test_a_recovery_says_what_it_gives_back_and_loads_in_peft() -> None:
    text = card("recovery.json", RECORDS["recovery.json"])
    assert "of rank 8 for `sparse` (weights sha256 ffffffffffffffff...)" in text
    assert "gives back what pruning took away" in text
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("sparse"), "sparse/recovery")' in text
    assert "--max-lora-rank 8 --lora-modules recovery=sparse/recovery" in text
    assert "--init recovery" in text
    assert "## Zeros" not in text


def test_the_embedded_model_is_named_as_a_quantized_copy() -> None:
    text = card("sparsity.json", {**RECORDS["sparsity.json"], "model": "smollm2-135m"})
    data = checked(text).data
    assert (data.base_model, data.base_model_relation) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "quantized")
    assert "`smollm2-135m` (HuggingFaceTB/SmolLM2-135M-Instruct from the SmolLM2-135M-Instruct.Q4_1.gguf of" in text
    adapter = card("sub_adapter.json", {**RECORDS["sub_adapter.json"], "base": "smollm2-135m"})
    assert checked(adapter).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "base_model_relation" not in adapter  # trained: the hub sees an adapter
    assert "`shears init smollm2-135m` downloads it" in adapter
    renamed = published(text, "sparsity.json", RECORDS["sparsity.json"], RECORDS["sparsity.json"], HubLocation("me/it"))
    assert "base_model_relation" not in renamed
    assert checked(renamed).data.base_model == "org/base"


def test_a_title_in_the_metadata_follows_the_base() -> None:
    record = RECORDS["sub_adapter.json"]
    text = published(card("sub_adapter.json", record, FIGURES), "sub_adapter.json", record,
                     {**record, "base": "me/sparse"}, HubLocation("me/it"))  # fmt: skip
    assert checked(text).data.model_name == "LoRA adapter for me/sparse"
    assert checked(text).data.eval_results[0].metric_value == 0.5


def test_a_relative_folder_is_not_named() -> None:
    record = {**RECORDS["sub_adapter.json"], "base": "secret/runs/sparse", "data": "secret/train.jsonl"}
    assert "secret" not in card("sub_adapter.json", record)


def test_a_card_names_lost_zeros() -> None:
    assert "0.0% zeros, 50.0% before the adapter was merged" in card("merged.json", RECORDS["merged.json"])
    assert "| packed | 156.0 MB |" in card("package.json", RECORDS["package.json"])


def test_a_package_names_another_tools_adapter() -> None:
    record = {**COMMON, "base": "smollm2-135m", "bytes": {"model": 2, "model_dense": 3, "adapter": 0}}
    assert "adapter, packed" not in card("package.json", record)
    assert hub_base("package.json", record)["base_model_relation"] == "quantized"
    record["bytes"] = {"model": 2, "model_dense": 3, "adapter": 1}
    assert "with an adapter, packed by shears" in card("package.json", record)
    assert "base_model_relation" not in hub_base("package.json", record)


def test_a_cell_cannot_break_its_table() -> None:
    assert table(("a", "b"), [("x|y\nz", 1)]).splitlines()[2] == "| x\\|y z | 1 |"


def test_a_card_lies_beside_its_record(tmp_path: Path) -> None:
    (tmp_path / "sub_adapter.json").write_text(json.dumps(RECORDS["sub_adapter.json"]))
    write_card(tmp_path)
    written = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(written.split("---")[1])["tags"] == ["shears", "sparse", "lora"]
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "sub_adapter.json"}


@pytest.mark.parametrize(
    ("data", "called"),
    [("/home/someone/test.jsonl", "test.jsonl"), ("openai/gsm8k/main:test", "openai/gsm8k"), (".", "harness"),
     ("google/boolq:validation", "google/boolq"), ("arithmetic:test", "arithmetic:test"),
     ("data/test.json", "test.json")],
)  # fmt: skip
def test_the_metadata_names_the_data_set_as_the_hub_does_and_never_leaves_it_empty(data: str, called: str) -> None:
    figures = [{**FIGURES[0], "task": "harness", "data": data}]
    (result,) = checked(card("sub_adapter.json", RECORDS["sub_adapter.json"], figures)).data.eval_results
    assert result.dataset_type == called


def test_a_name_from_a_record_cannot_become_code_that_people_copy() -> None:
    hostile = 'x")\nimport os; os.system("`touch ran`$(touch ran)'
    record = {**RECORDS["sub_adapter.json"], "base": f"/models/{hostile}", "data": "a`<img src=x>\n# b"}
    text = card("sub_adapter.json", record)
    assert "x_)_import os_ os.system(__touch ran__(touch ran)" in text
    assert not any(part in text for part in ("\nimport os", "$(", "`touch", "<img"))
