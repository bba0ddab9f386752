"""Sections of the page: what is told of training, layers, packages, speed and choices."""

import re
from pathlib import Path
from typing import Any

from tests.report.made import RANKS, VERSIONS, Reader, page_of, records


def test_without_times_the_tokens_are_shown(tmp_path: Path) -> None:
    files = {name: content for name, content in records().items() if "times" not in name}
    page = page_of(tmp_path, files)
    assert "Completion tokens trained on" in page
    assert "Speed of training" not in page
    assert "The steps took" not in page


def test_layers_that_are_alike_share_a_row(tmp_path: Path) -> None:
    """Ranks of up_proj fall from layer to layer in the made run; here the first two are alike."""
    ranks = {**RANKS, "layers.1.up_proj": RANKS["layers.0.up_proj"]}
    page = page_of(tmp_path, {"sub_adapter/sub_adapter.json": {"config": {}, "ranks": ranks}})
    assert "<title>layers 0-1, up_proj: 6</title>" in page
    assert "<title>layer 2, up_proj: 2</title>" in page


def test_a_package_says_what_it_weighs(tmp_path: Path) -> None:
    files = {"package/package.json": {"bytes": {"model": 58, "model_dense": 100}, "config": {}, "ranks": RANKS}}
    text = Reader(page_of(tmp_path, files)).text
    assert "0.58xon disk" in text
    assert "Rank by layer and group" in text


def test_the_ranks_are_those_of_what_the_recipe_exports(tmp_path: Path) -> None:
    """A run may hold an adapter of before its format was changed."""
    package = {"config": {}, "ranks": dict.fromkeys(RANKS, 7), "fingerprint": "c" * 64}
    recipe = {**records()["recipe.yaml"], "export": {"format": "package"}}
    files = {**records(), "package/package.json": package, "recipe.yaml": recipe}
    text = Reader(page_of(tmp_path, files)).text
    assert "The exported sub-adapter has rank 7 in 6 groups" in text
    assert "itself cccccccccccc" in text


def test_what_stages_left_that_the_recipe_has_no_more_is_not_of_the_run(tmp_path: Path) -> None:
    recipe = {**records()["recipe.yaml"], "train": None, "search": None}
    summary = records()["evaluation.json"]
    shown = {**summary, "models": summary["models"][:2]}
    package = {"package/package.json": {"bytes": {"model": 58, "model_dense": 100}, "config": {}, "ranks": RANKS}}
    text = Reader(page_of(tmp_path, {**records(), **package, "recipe.yaml": recipe, "evaluation.json": shown})).text
    for words in ("Only the last model was trained", "not trained on the task", "exported sub-adapter", "on disk",
                  "configurations measured", "carry the loss"):  # fmt: skip
        assert words not in text
    assert "Accuracy by model" in text


def test_a_base_that_was_trained_before_is_not_called_untrained(tmp_path: Path) -> None:
    words = ("Only the last model was trained", "The dense model was not trained on the task.")
    files = records()
    text = Reader(page_of(tmp_path / "one", files)).text
    assert all(each in text for each in words)
    files["sparse/sparsity.json"]["trained_before"] = [{"data": "first.jsonl", "data_sha256": None}]
    text = Reader(page_of(tmp_path / "two", files)).text
    assert not any(each in text for each in words)


def spread(middle: float) -> dict[str, float]:
    """A median, and a tenth of it on both sides."""
    return {"median": middle, "min": 0.9 * middle, "max": 1.1 * middle}


def test_a_bench_says_how_fast_the_package_is(tmp_path: Path) -> None:
    """Of the two ways of transformers the faster counts; our own dense kernels are in the table, not in the words."""
    speeds = {"package (bf16, native)": 120.0, "dense, our kernels (bf16)": 100.0, "dense, transformers": 20.0,
              "dense, transformers, oneDNN off": 40.0}  # fmt: skip
    contestants = [
        {"name": name, "memory_bytes": 1e8, "decode_tokens_per_second": spread(speed),
         "prefill_tokens_per_second": spread(10 * speed), "time_to_first_token_seconds": spread(0.25)}
        for name, speed in speeds.items()
    ]  # fmt: skip
    ratios = [{"over": name, "decode": spread(120 / speed)} for name, speed in list(speeds.items())[1:]]
    bench = {"package": "runs/mine/package", "cpu": "a processor", "threads": 1, "rounds": 5, "prompt_tokens": 512,
             "new_tokens": 64, "contestants": contestants, "ratios": ratios}  # fmt: skip
    text = Reader(page_of(tmp_path, records() | {"bench.json": bench})).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "fewer non-zero weights, 3.00x as fast as the dense model in transformers." in text
    assert "3.00xas fast as the dense model in transformers, decoding2.70x to 3.30x over 5 rounds, 1 thread" in text
    assert "runs/mine/package on a processor, 1 thread: 64 tokens behind a prompt" in text
    assert "dense, transformers20 (18 to 22)100.0 MB" in text
    assert "dense, transformers200 (180 to 220)250 (225 to 275)" in text  # of reading, and the first token


def test_an_adapter_on_a_model_that_was_not_pruned_adds_weights(tmp_path: Path) -> None:
    files = records()
    for model in files["evaluation.json"]["models"]:
        model["nonzeros"] = 1000
    text = Reader(page_of(tmp_path, files)).text
    assert "with 1.02x more non-zero weights." in text  # 1020 / 1000
    assert "1.02xmore non-zero weights, the adapter's counted in" in text
    assert "fewer" not in text


def test_zeros_that_merging_filled_are_told_beside_those_of_pruning(tmp_path: Path) -> None:
    files = records()
    files["recipe.yaml"]["export"] = {"format": "merged"}
    files["merged/merged.json"] = {"sparsity": {"before": 0.5, "after": 0.167}, "ranks": {}}
    assert "6 linears; 16.7\N{NO-BREAK SPACE}% with the adapter merged" in Reader(page_of(tmp_path / "a", files)).text
    files["merged/merged.json"]["sparsity"]["after"] = 0.5
    assert "with the adapter merged" not in Reader(page_of(tmp_path / "b", files)).text


def test_what_a_choice_is_worth_on_examples_that_no_search_saw_is_told(tmp_path: Path) -> None:
    files = records()
    test: dict[str, Any] = {"n": 50, "heuristic": 0.5, "chosen": 0.48, "difference": -0.02, "ci95": [-0.05, 0.01]}
    files["search/result.json"]["gain"] = {"figure": "loss", "test": test, "notes": ["inside the noise"]}
    text = Reader(page_of(tmp_path, files)).text
    assert (
        "Loss on 50 test examples: chosen 0.48, heuristic 0.5 (-0.02, -0.05 to +0.01). Note: inside the noise." in text
    )
    test["ci95"] = None  # of one example
    text = Reader(page_of(tmp_path, files)).text
    assert "chosen 0.48, heuristic 0.5 (-0.02, no interval is known). Note: inside the noise." in text


def test_an_answer_without_a_text_is_called_so(tmp_path: Path) -> None:
    files = records()
    files["evaluation/sparse.json"]["records"][2] |= {"output": " ", "prediction": None}
    assert "no text → nothing found" in page_of(tmp_path, files)


def test_perplexities_are_no_percentages(tmp_path: Path) -> None:
    files = {"evaluation.json": records()["evaluation.json"]}
    for number, row in enumerate(files["evaluation.json"]["models"]):
        row |= {"metric": "perplexity", "value": 20.0 + 10 * number, "ci95": [19.0, 45.0]}
    text = Reader(page_of(tmp_path, files)).text
    assert "2.00xthe dense model's perplexity, by sparse + sub-adapter40 (19 to 45) against 20" in text


def test_a_loss_that_ran_away_still_makes_a_page(tmp_path: Path) -> None:
    files = records()
    files["super_adapter/training_log.jsonl"][5]["loss"] = float("inf")
    page = page_of(tmp_path, files)
    drawn = re.findall(r'points="([^"]*)"', page)
    assert drawn
    assert not any(word in line for line in drawn for word in ("nan", "inf"))


def test_what_a_race_estimated_is_marked_and_is_never_the_best(tmp_path: Path) -> None:
    files = records()
    raced = {"ranks": RANKS, "metrics": {"loss": 0.31, "parameters": 20, "examples": 1}}
    files["search/result.json"]["evaluations"].insert(1, raced)
    reader = Reader(page_of(tmp_path, files))
    text = reader.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "4 configurations measured, 2 of them on the front; 1 more only estimated, in a race." in text
    assert "0.5 of the first measured, 5 tried" in text
    assert (
        "evaluationlossmeasured onbest so far10.5all examples0.520.31raced, 1 example0.530.45all examples0.45" in text
    )
    assert "2raced, 1 example0.31201 x 6, 4 x 4, 1 x 2copy command" in text
    assert [mark["class"] for mark in reader.named("circle")].count("raced") == 2  # in both pictures
    assert text.count("Hollow: ") == 2
    assert text.count("Large and ringed: the one chosen. On the line: the front") == 1
    circles = [mark["class"] for mark in reader.named("circle")]
    assert (circles.count("chosen"), circles.count("front")) == (1, 1)
    (*_, front) = (str(line["points"]).split() for line in reader.named("polyline") if line["class"] == "pale")
    assert len(front) == 3  # two configurations and the corner between them
    assert "Hollow" not in Reader(page_of(tmp_path / "none")).text


def test_versions_stand_by_stage_where_they_differ(tmp_path: Path) -> None:
    files = records()
    assert "Versionsstagepythontorchtransformerspeftall3.11.92.9.05.0.00.18.0" in Reader(page_of(tmp_path, files)).text
    other = {**VERSIONS, "torch": "2.10.0"}
    files["times.jsonl"] += [{"stage": "train", "began": "3", "machine": "", "versions": other},
                             {"stage": "search", "began": "4", "machine": "", "versions": other},
                             {"stage": "export", "began": "5", "machine": ""}]  # fmt: skip
    text = Reader(page_of(tmp_path, files)).text
    assert "train3.11.92.9.0; 2.10.05.0.00.18.0search3.11.92.10.05.0.00.18.0exportnot kept" in text


def test_a_run_of_an_earlier_version_is_shown_without_versions(tmp_path: Path) -> None:
    files = records()
    for line in files["times.jsonl"]:
        line.pop("versions", None)
    text = Reader(page_of(tmp_path, files)).text
    assert "Times on a processor, 2 threads" in text
    assert "Versions" not in text


def test_what_broke_a_bound_and_was_not_measured_is_counted_and_not_drawn(tmp_path: Path) -> None:
    files = records()
    result = files["search/result.json"]
    result["constraints"] = ["parameters<=36"]
    for number in (0, 3):
        del result["evaluations"][number]["metrics"]["loss"]
    page = page_of(tmp_path, files)
    text = Reader(page).text
    assert "2 configurations measured, 2 of them on the front. 2 more break parameters<=36: not measured." in text
    assert "0.45 of the first measured, 4 tried" in text
    copied = {each["data-copy"] for each in Reader(page).named("g") if each.get("data-copy")}
    assert {str(words).rsplit(":", 1)[1] for words in copied} == {"2", "3"}  # their places in result.json
    for number in (1, 2):
        del result["evaluations"][number]["metrics"]["loss"]
    assert "0 configurations measured" in Reader(page_of(tmp_path / "none", files)).text
