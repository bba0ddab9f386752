"""A plan's figures are those of the stages when they have run."""

import json
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from shears.data.calibration import calibration_batches
from shears.data.examples import load_examples, tokenize_all
from shears.errors import InputError
from shears.models.load import load_tokenizer
from shears.runs.planning.plan import Plan, plan
from tests.tiny import save_tiny


def planned(folder: Path, **sections: Any) -> Plan:
    """The plan of a tiny model's run."""
    if not (folder / "base").exists():
        save_tiny(folder / "base")
    recipe = {"model": str(folder / "base"), "output": str(folder / "run"), **sections}
    return plan(Recipe.model_validate(recipe))


def work(found: Plan) -> str:
    return found.stages[-1].work


def test_a_text_that_perplexity_is_measured_on_is_planned(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words " * 50)
    evaluate = {"task": "perplexity", "data": str(text), "sequence_length": 64}
    assert work(planned(tmp_path, evaluate=evaluate)) == f"perplexity, 2 models, each on windows of 64 tokens of {text}"
    limited = work(planned(tmp_path, evaluate={**evaluate, "limit": 3}))
    assert limited.endswith(f"each on the first 3 windows of 64 tokens of {text}")
    absent = work(planned(tmp_path, evaluate={**evaluate, "data": "nowhere.txt"}))
    assert absent.endswith("tokens of nowhere.txt (not here yet)")


def test_tasks_of_lm_eval_are_named(tmp_path: Path) -> None:
    found = work(planned(tmp_path, evaluate={"harness": ["arc_easy", "piqa"], "limit": 5}))
    assert found == "harness, 2 models, each on up to 5 examples of arc_easy, piqa"


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"max_steps": 5}])
def test_tokens_of_a_training_are_those_of_the_examples_it_sees(settings: dict[str, int], tmp_path: Path) -> None:
    """Twenty rows in steps of 16: of an epoch's two steps, the second has four. A row that is too long is left out."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "same length?", "completion": "yes"}] * 20 + [{"prompt": "x" * 200, "completion": "y"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"data": str(file), "ranks": [4, 2], "batch_size": 16, "max_length": 64, **settings}
    found = planned(tmp_path, train=config).stages[1].work
    tokenizer = load_tokenizer(tmp_path / "base")
    kept = tokenize_all(load_examples(str(file), "question", tokenizer), tokenizer, 64)
    steps, seen = (6, 60) if "epochs" in settings else (5, 56)
    assert len(kept) == 20
    tokens = f"{seen * len(kept[0].input_ids):,}"
    assert found == f"{steps} steps of 16 examples, 21 examples of {file}, about {tokens} tokens"


def test_shares_of_zeros_are_not_rounded_to_whole_percents(tmp_path: Path) -> None:
    assert planned(tmp_path, sparsify={"sparsity": 0.625}).stages[0].work.startswith("wanda to 62.5%, ")


def test_what_a_number_format_of_a_package_saves_is_planned(tmp_path: Path) -> None:
    """Beside an fp32 package; what headers take is alike in all of them."""
    settings = [{}, {"values": "bf16"}, {"values": "int8"}, {"values": "bf16", "embeddings": "int8"}]
    train = {"data": "arithmetic:train", "ranks": [4, 2], "max_steps": 1}
    disks, files = list[int](), list[int]()
    planned(tmp_path)
    sparse = shears.sparsify(tmp_path / "base", tmp_path / "sparse", sparsity=0.75, num_samples=4, sequence_length=32)
    for number, each in enumerate(settings):
        export = {"format": "package", "ranks": "heuristic", **each}
        disks.append(planned(tmp_path, sparsify={"sparsity": 0.75}, train=train, export=export).stages[2].disk or 0)
        package = shears.export_adapter(sparse, tmp_path / f"package-{number}", format="package", **each)
        files.append((package / "package.safetensors").stat().st_size)
    saved, found = ([sizes[0] - size for size in sizes[1:]] for sizes in (disks, files))
    assert saved == pytest.approx(found, rel=0.15)  # int8 has a scale a row


@pytest.mark.parametrize(
    ("export", "ranks"), [({"format": "padded"}, 4), ({"ranks": "maximal"}, 4), ({"ranks": "minimal"}, 2)]
)
def test_an_adapter_is_planned_at_the_ranks_it_is_written_in(
    export: dict[str, str], ranks: int, tmp_path: Path
) -> None:
    train = {"data": "arithmetic:train", "ranks": [4, 2], "groups": ["q_proj"], "max_steps": 1}
    assert planned(tmp_path, train=train, export=export).stages[2].disk == 4 * ranks * (32 + 32) * 2


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_package_of_experts_is_planned_at_its_size(name: str, tmp_path: Path) -> None:
    """Those of Mixtral lie one by one in its files and are packed, those of GPT-OSS in a stack, which stays dense."""
    save_tiny(tmp_path / "base", name, hidden_size=64, intermediate_size=128)
    train = {"data": "arithmetic:train", "ranks": [4], "groups": ["o_proj"], "max_steps": 1}
    recipe = Recipe.model_validate(
        {
            "model": str(tmp_path / "base"),
            "output": str(tmp_path / "run"),
            "sparsify": {"method": "magnitude"},
            "train": train,
            "export": {"format": "package"},
        }
    )
    disk = plan(recipe).stages[2].disk
    shears.run(recipe)
    assert disk == pytest.approx((tmp_path / "run" / "package" / "package.safetensors").stat().st_size, rel=0.1)


def test_a_search_on_the_test_rows_is_refused_whatever_their_file_is_called(tmp_path: Path) -> None:
    """As `run` refuses it; a hub set is not fetched to find out."""
    for name in ("validation.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"prompt": "1+1?", "completion": " 2", "answer": 2}\n')
    sections = {
        "train": {"data": "arithmetic:train", "ranks": [4, 2], "max_steps": 1},
        "search": {"data": str(tmp_path / "validation.jsonl")},
        "evaluate": {"task": "number", "data": str(tmp_path / "test.jsonl")},
    }
    with pytest.raises(InputError, match="all 1 rows of .*test.jsonl stand in .*validation.jsonl"):
        planned(tmp_path, **sections)
    assert planned(tmp_path, **sections | {"evaluate": {"task": "number", "data": "org/name"}})


def test_a_package_is_refused_and_a_text_that_is_not_here_is_told(tmp_path: Path) -> None:
    found = planned(tmp_path, sparsify={"calibration": "nowhere.txt", "num_samples": 2, "sequence_length": 8})
    assert found.stages[0].work == "wanda to 50%, 2 x 8 = 16 tokens of nowhere.txt (not here yet)"
    shears.export_adapter(tmp_path / "base", tmp_path / "package", format="package")
    with pytest.raises(InputError, match="a model to prune must be a model folder, got the package"):
        plan(Recipe.model_validate({"model": str(tmp_path / "package"), "output": str(tmp_path / "run")}))


def test_rows_of_token_ids_are_planned_as_they_are_calibrated_on(tmp_path: Path) -> None:
    """All of them, without their padding, whatever `num_samples` says."""
    file = tmp_path / "ids.jsonl"
    padded = {"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}
    file.write_text("".join(json.dumps(row) + "\n" for row in [padded, {"input_ids": [1, 2, 3, 4]}]))
    found = planned(tmp_path, sparsify={"calibration": str(file), "num_samples": 64, "sequence_length": 512})
    assert found.stages[0].work == f"wanda to 50%, all 2 rows of {file}, 7 tokens"
    assert calibration_batches(str(file), None, 64, 512, batch_size=4, seed=0).num_tokens == 7
