"""The headlines and the sentence that sums up a run."""

from pathlib import Path

from tests.report.made import RANKS, Reader, page_of, records


def test_the_size_of_a_package_is_shown(tmp_path: Path) -> None:
    files = {"package/package.json": {"bytes": {"model": 58, "model_dense": 100}, "config": {}, "ranks": RANKS}}
    text = Reader(page_of(tmp_path, files)).text
    assert "0.58xthe size on disk of the dense model" in text
    assert "Rank by layer and group" in text


def test_a_base_that_was_trained_before_is_not_called_untrained(tmp_path: Path) -> None:
    words = ("Only the last model was trained", "The dense model was not trained on the task.")
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
    assert "with 1.02x more non-zero weights." in text  # 1020 / 1000
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
    for number, row in enumerate(files["evaluation.json"]["models"]):
        row |= {"metric": "perplexity", "value": 20.0 + 10 * number, "ci95": [19.0, 45.0]}
    text = Reader(page_of(tmp_path, files)).text
    assert "2.00xthe dense model's perplexity, by sparse + sub-adapter40 (19 to 45) against 20" in text
