"""The headlines and the sentence that sums up a run."""

from pathlib import Path
from typing import Any

from tests.report.made import RANKS, Reader, page_of, record, records, row


def with_baselines(files: dict[str, Any], **answers: list[int]) -> dict[str, Any]:
    """Add plain LoRA arms, on the dense and on the pruned model, to the records of a run."""
    for number, (name, right) in enumerate(answers.items(), start=2):
        arm = name.replace("_", "-")
        files["evaluation.json"]["models"].insert(number, row(arm, right) | {"adapter_parameters": 30})
        each = [record(index, arm, hit, "Question") for index, hit in enumerate(right)]
        files[f"evaluation/{name}.json"] = {**row(arm, right), "records": each}
        files[f"baselines/{name}/search_space.json"] = {"shears_version": "0.1.0", "config": {"seed": 5}}
    return files


def test_a_run_with_baselines_leads_with_the_difference_to_plain_lora_on_the_dense_model(tmp_path: Path) -> None:
    files = with_baselines(records(), sparse_lora=[0, 0, 1, 0], dense_lora=[1, 1, 1, 0])
    text = Reader(page_of(tmp_path, files)).text.replace("\N{NO-BREAK SPACE}", " ")
    sentence = (
        "Sparse + sub-adapter is 25.0 points below dense-lora (95 % interval -71.7 to +38.3; 50.0 % against 75.0 %"
    )
    assert sentence in text
    assert "n = 4); these questions do not tell the two apart. It has 1.61x fewer non-zero weights" in text
    headlines = [
        "-25.0 pointssparse + sub-adapter minus dense-lora95 % interval -71.7 to +38.3; 50.0 % against 75.0 %; of 4 "
        "questions, 0 right only by the first and 1 only by the second",
        "+25.0 pointssparse + sub-adapter minus sparse-lora95 %",
        "-25.0 pointssparse minus dense: pruning alone95 %",
    ]
    places = [text.index(words) for words in headlines]
    assert text.index(sentence) < places[0] < places[1] < places[2]
    assert "Only sparse-lora, dense-lora and sparse + sub-adapter were trained on the task." in text
    assert "which was not trained" not in text
    assert "A run of shears on some-model: sparsify, train, search, export, sparse-lora, dense-lora." in text


def test_a_difference_beyond_its_interval_is_stated_without_doubt(tmp_path: Path) -> None:
    files, right = with_baselines(records(), dense_lora=[1] * 4), [1, 0, 1, 0]
    for name, bits in (("dense_lora", [0] * 40), ("sparse_sub_adapter", right * 10)):
        path = f"evaluation/{name}.json"
        files[path]["records"] = [record(index, name, bit, "Question") for index, bit in enumerate(bits)]
    text = Reader(page_of(tmp_path, files)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Sparse + sub-adapter is 50.0 points above dense-lora (95 % interval +" in text
    assert "tell the two apart" not in text


def test_the_size_of_a_package_is_shown(tmp_path: Path) -> None:
    files = {"package/package.json": {"bytes": {"model": 58, "model_dense": 100}, "config": {}, "ranks": RANKS}}
    text = Reader(page_of(tmp_path, files)).text
    assert "0.58xthe size on disk of the dense model" in text
    assert "Rank by layer and group" in text


def test_a_base_that_was_trained_before_is_not_called_untrained(tmp_path: Path) -> None:
    words = ("Only the last model was trained", "dense, which was not trained on the task")
    files = records()
    text = Reader(page_of(tmp_path / "one", files)).text
    assert all(each in text for each in words)
    files["sparse/sparsity.json"]["trained_before"] = [{"data": "first.jsonl", "data_sha256": None}]
    text = Reader(page_of(tmp_path / "two", files)).text
    assert not any(each in text for each in words)


def test_an_adapter_on_a_model_that_was_not_pruned_adds_weights(tmp_path: Path) -> None:
    files = records()
    for model in files["evaluation.json"]["models"]:
        model["nonzeros"] = 1000
    text = Reader(page_of(tmp_path, files)).text
    assert "It has 1.02x more non-zero weights than the dense model." in text  # 1020 / 1000
    assert "1.02xmore non-zero weights, including the adapter's" in text
    assert "fewer" not in text


def test_zeros_that_merging_filled_are_shown_beside_those_of_pruning(tmp_path: Path) -> None:
    files = records()
    files["recipe.yaml"]["export"] = {"format": "merged"}
    files["merged/merged.json"] = {"sparsity": {"before": 0.5, "after": 0.167}, "ranks": {}}
    assert "6 linears; 16.7\N{NO-BREAK SPACE}% with the adapter merged" in Reader(page_of(tmp_path / "a", files)).text
    files["merged/merged.json"]["sparsity"]["after"] = 0.5
    assert "with the adapter merged" not in Reader(page_of(tmp_path / "b", files)).text


def test_perplexities_are_not_percentages(tmp_path: Path) -> None:
    files = {"evaluation.json": records()["evaluation.json"]}
    for number, model in enumerate(files["evaluation.json"]["models"]):
        model |= {"metric": "perplexity", "value": 20.0 + 10 * number, "ci95": [19.0, 45.0]}
    text = Reader(page_of(tmp_path, files)).text
    assert "Sparse + sub-adapter has perplexity 40, against 20 of dense." in text
    assert "40perplexity of sparse + sub-adapter40 against 20 of dense" in text
