"""The sections Layers, Training and Recipe."""

import re
from pathlib import Path

from tests.report.made import RANKS, VERSIONS, Reader, page_of, records


def test_without_times_the_tokens_are_shown(tmp_path: Path) -> None:
    files = {name: content for name, content in records().items() if "times" not in name}
    page = page_of(tmp_path, files)
    assert "Completion tokens trained on" in page
    assert "Speed of training" not in page
    assert "The steps took" not in page


def test_equal_layers_share_a_row(tmp_path: Path) -> None:
    """Ranks of up_proj fall from layer to layer in the made run; here the first two are alike."""
    ranks = {**RANKS, "layers.1.up_proj": RANKS["layers.0.up_proj"]}
    page = page_of(tmp_path, {"sub_adapter/sub_adapter.json": {"config": {}, "ranks": ranks}})
    assert "<title>layers 0-1, up_proj: 6</title>" in page
    assert "<title>layer 2, up_proj: 2</title>" in page


def test_the_ranks_are_those_of_what_the_recipe_exports(tmp_path: Path) -> None:
    """A run may still have an adapter from before its export format was changed."""
    package = {"config": {}, "ranks": dict.fromkeys(RANKS, 7), "fingerprint": "c" * 64}
    recipe = {**records()["recipe.yaml"], "export": {"format": "package"}}
    files = {**records(), "package/package.json": package, "recipe.yaml": recipe}
    text = Reader(page_of(tmp_path, files)).text
    assert "The exported sub-adapter has rank 7 in 6 groups" in text
    assert "output cccccccccccc" in text


def test_records_of_stages_that_the_recipe_no_longer_has_are_ignored(tmp_path: Path) -> None:
    recipe = {**records()["recipe.yaml"], "train": None, "search": None}
    summary = records()["evaluation.json"]
    shown = {**summary, "models": summary["models"][:2]}
    package = {"package/package.json": {"bytes": {"model": 58, "model_dense": 100}, "config": {}, "ranks": RANKS}}
    text = Reader(page_of(tmp_path, {**records(), **package, "recipe.yaml": recipe, "evaluation.json": shown})).text
    for words in ("Only the last model was trained", "not trained on the task", "exported sub-adapter", "size on disk",
                  "configurations measured", "completion tokens"):  # fmt: skip
        assert words not in text
    assert "Accuracy by model" in text


def test_an_infinite_loss_still_makes_a_page(tmp_path: Path) -> None:
    files = records()
    files["super_adapter/training_log.jsonl"][5]["loss"] = float("inf")
    page = page_of(tmp_path, files)
    drawn = re.findall(r'points="([^"]*)"', page)
    assert drawn
    assert not any(word in line for line in drawn for word in ("nan", "inf"))


def test_versions_are_listed_by_stage_if_they_differ(tmp_path: Path) -> None:
    files = records()
    assert "Versionsstagepythontorchtransformerspeftall3.11.92.9.05.0.00.18.0" in Reader(page_of(tmp_path, files)).text
    other = {**VERSIONS, "torch": "2.10.0"}
    files["times.jsonl"] += [{"stage": "train", "began": "3", "machine": "", "versions": other},
                             {"stage": "search", "began": "4", "machine": "", "versions": other},
                             {"stage": "export", "began": "5", "machine": ""}]  # fmt: skip
    text = Reader(page_of(tmp_path, files)).text
    assert "train3.11.92.9.0; 2.10.05.0.00.18.0search3.11.92.10.05.0.00.18.0exportnot recorded" in text


def test_a_run_of_an_earlier_version_is_shown_without_versions(tmp_path: Path) -> None:
    files = records()
    for line in files["times.jsonl"]:
        line.pop("versions", None)
    text = Reader(page_of(tmp_path, files)).text
    assert "Times on a processor, 2 threads" in text
    assert "Versions" not in text


def test_validation_losses_are_dots_with_a_table_and_the_lowest_in_words(tmp_path: Path) -> None:
    files = records()
    plain = page_of(tmp_path, files)
    for step, loss in ((100, 2.0), (200, 1.25), (300, 1.5)):
        files["super_adapter/training_log.jsonl"][step - 1]["validation_loss"] = loss
    files["super_adapter/search_space.json"]["validation"] = {"step": 200, "loss": 1.25}
    page = page_of(tmp_path, files)
    words = "lowest after step 200, whose adapter was kept: 1.25; at the end it was 1.5."
    assert words in Reader(page).text
    assert page.count('class="dot"') - plain.count('class="dot"') == 3
    assert "Validation loss" not in plain
