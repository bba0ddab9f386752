"""A plan has the work, memory and disk of every stage, changes nothing, and works offline for every recipe."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import shears
from shears.checkpoints.package_file import PACKAGE_FILE
from shears.cli import main
from shears.config import Recipe
from shears.config.resolve import load_recipe
from shears.config.sparsify_options import EMBEDDED
from shears.errors import InputError
from shears.models.fetching import convert_gguf
from shears.runs.plan import RunPlan, block_bytes, plan, timed_rate
from shears.runs.shapes import PUBLISHED, shape_of
from tests.end_to_end.recipe import write_recipe
from tests.export.made import GROUPS, RANKS, super_adapter
from tests.models.gguf_files import write_gguf
from tests.tiny import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
NO_SEARCH = ["search=null", "evaluate=null", "train.max_steps=null", "train.epochs=0.5"]
EVALUATED = ["search=null", "export.sub_adapter=heuristic", "train.max_steps=null", "train.epochs=0.5"]
MAGNITUDE = {"method": "magnitude"}  # needs no calibration text
SIZES = {"smollm2-135m": 134_515_008, "huggyllama/llama-7b": 6_738_415_616, "huggyllama/llama-13b": 13_015_864_320,
         "mosaicml/mpt-7b": 6_649_286_656, "Qwen/Qwen2.5-Coder-0.5B-Instruct": 494_032_768,
         "Qwen/Qwen2.5-Coder-1.5B-Instruct": 1_543_714_304}  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned_offline(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    run_plan = plan(recipe, tmp_path / "run")
    names = [stage.name for stage in run_plan.stages]
    assert recipe.evaluate is not None
    trained = ["train"] if recipe.train else []
    searches = ["search"] if "paper" in path.parts else []  # the others train one rank, or none
    assert names == ["sparsify", *trained, *searches, "export", *recipe.baselines, "evaluate"]
    assert {stage.state for stage in run_plan.stages} == {"to do"}
    assert run_plan.parameters == SIZES[recipe.model or ""]
    assert all(stage.memory for stage in run_plan.stages if recipe.train or stage.name != "export")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_the_size_that_is_published(name: str) -> None:
    shape = shape_of(name)
    assert shape is not None
    assert shape.parameters == SIZES[name]
    assert set(EMBEDDED) <= set(PUBLISHED)


@pytest.mark.parametrize("without", [(), ("output",)], ids=["own head", "tied"])
def test_a_gguf_file_has_the_size_of_the_folder_that_it_becomes(without: tuple[str, ...], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", architecture="qwen2", without=without)
    before = shape_of(str(file))
    after = shape_of(str(convert_gguf(file)))
    assert before is not None
    assert after is not None
    assert (before.parameters, before.sides) == (after.parameters, after.sides)
    assert before.file_bytes == pytest.approx(after.file_bytes, rel=0.1)
    halved = shape_of(str(file), "bf16")
    assert halved is not None
    assert before.file_bytes == 4 * before.parameters == 2 * (halved.file_bytes or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunPlan]:
    """A folder with a recipe and its finished run, and the plan from before the run."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = load_recipe(write_recipe(folder), EVALUATED)
    before = plan(recipe, folder / "run")
    shears.run(recipe, folder / "run")
    return folder, before


def test_the_figures_of_a_plan_are_those_of_the_run(finished: tuple[Path, RunPlan]) -> None:
    folder, before = finished
    assert before.parameters == tiny_model().num_parameters()
    space = json.loads((folder / "run" / "super_adapter" / "search_space.json").read_text())
    sparsified, trained, exported, _ = before.stages
    assert trained.work.startswith(f"{space['num_steps']} steps of 4 examples, 48 examples")
    assert trained.disk == 4 * space["num_parameters"]["maximal"]
    assert exported.disk == 4 * space["num_parameters"]["heuristic"]
    weights = sum(file.stat().st_size for file in (folder / "run" / "sparse").glob("*.safetensors"))
    assert sparsified.disk == pytest.approx(weights, rel=0.01)
    with pytest.raises(InputError, match=r"train\.alpha was 12\.0 and is now 99"):
        plan(load_recipe(folder / "recipe.yaml", [*EVALUATED, "train.alpha=99"]), folder / "run")


def test_a_sparse_model_of_another_number_format_has_its_size(tmp_path: Path) -> None:
    path, most = write_recipe(tmp_path), 4 * tiny_model().num_parameters()
    settings = ["search.strategy=heuristic", "export.format=merged", "train.precision=bf16"]
    plain = plan(load_recipe(path, settings), tmp_path / "plain").stages
    halved = plan(load_recipe(path, [*settings, "sparsify.dtype=bf16"]), tmp_path / "run").stages
    assert [stage.name for stage in halved] == ["sparsify", "train", "search", "export", "evaluate"]
    assert halved[0].disk == halved[3].disk == most // 2
    assert plain[0].memory == halved[0].memory  # pruned in fp32 whatever it is saved in
    assert (plain[1].memory or 0) - (halved[1].memory or 0) == pytest.approx(most / 2, rel=0.05)
    wide = plan(load_recipe(path, [*settings, "sparsify.dtype=bf16", "train.precision=fp32"]), tmp_path / "run").stages
    assert wide[1].memory == pytest.approx(plain[1].memory, rel=0.05)  # trained in fp32 whatever it is saved in
    assert halved[2].memory == pytest.approx(plain[2].memory, rel=0.05)  # losses are measured in fp32
    sixteen = plan(load_recipe(path, [*settings, "sparsify.dtype=bf16", "search.precision=bf16"]), tmp_path / "run")
    assert (plain[2].memory or 0) - (sixteen.stages[2].memory or 0) == pytest.approx(most / 2, rel=0.05)
    assert halved[4].memory == pytest.approx(most, rel=0.05)  # of the dense model, which is measured too
    sparse = shears.sparsify(tmp_path / "base", tmp_path / "sparse", method="magnitude", dtype="bf16")
    assert halved[0].disk == pytest.approx((sparse / "model.safetensors").stat().st_size, rel=0.05)


def test_an_embedded_model_is_planned_alike_before_and_after_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has four bits on PyPI, and fp32 in the cache once it was used."""
    monkeypatch.setenv("SHEARS_CACHE", str(tmp_path / "nothing"))
    shape = shape_of("smollm2-135m")
    assert shape is not None
    assert shape.folder is None
    assert shape.file_bytes == 4 * SIZES["smollm2-135m"]


def test_figures_of_models_and_data_to_download_are_unknown(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"model": "someone/something", "sparsify": MAGNITUDE, "train": {"data": "nowhere.jsonl"}}
    )
    run_plan = plan(recipe, tmp_path / "run")
    assert run_plan.parameters is None
    assert {(stage.memory, stage.disk) for stage in run_plan.stages} == {(None, None)}
    assert "nowhere.jsonl is not on this machine yet" in run_plan.stages[1].work


def test_a_dry_run_prints_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["shears", "run", str(write_recipe(tmp_path)), "--output", str(tmp_path / "run"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = " ".join(capfd.readouterr()[0].split())
    assert "sparsify │ to do │ wanda to 50%" in printed
    assert "are free there" in printed
    assert "cpu in fp32 has " in printed
    assert not (tmp_path / "run").exists()


def test_llama_7b_fits_24_gb_by_arithmetic_and_has_no_hours_on_a_gpu_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    for name, count in (("math_10k_train", 9_500), ("math_10k_validation", 500), ("gsm8k/test", 1_319)):
        rows = [{"instruction": f"{name[-9:]} {n:5}".ljust(300), "output": "y" * 300} for n in range(count)]
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(rows))
    names = ("sparsify", "train", "search", "export", "evaluate")
    recipe = load_recipe(ROOT / "recipes/paper/llama-7b-math.yaml", [f"{name}.device=cuda" for name in names])
    run_plan = plan(recipe, tmp_path / "run")
    sparsify, train, search, _, evaluate = run_plan.stages
    hidden, inner, blocks, words, logits = 4096, 11008, 32, 32000, 16 * 32000
    linears = blocks * (4 * hidden**2 + 3 * hidden * inner)
    adapter = 32 * blocks * (3 * 2 * hidden + 2 * (hidden + inner))
    without = (16 * hidden + 6 * inner) * blocks  # bytes a token that the backward needs beside adapters
    adapted = (3 * 4 * hidden + 3 * inner) * blocks  # inputs in 16 bits and masks of their dropout
    assert train.activations == 2 * 512 * (without + adapted + logits)
    assert train.memory == 2 * SIZES["huggyllama/llama-7b"] + 16 * adapter
    assert search.memory == 2 * SIZES["huggyllama/llama-7b"] + 4 * adapter
    assert search.activations == 8 * 512 * (without // blocks + logits)
    cache = 4 * 4 * blocks * hidden  # keys and values of 4 beams in 16 bits
    assert evaluate.activations == 4 * (512 + 256) * (cache + without // blocks)
    most = {stage.name: round((stage.peak or 0) / 1e9, 1) for stage in run_plan.stages}
    assert most == {"sparsify": 4.9, "train": 21.9, "search": 16.3, "export": 0.3, "evaluate": 20.5}
    assert sparsify.flops == 4 * linears * 128 * 2048
    tokens = 1_782 * 16 * 600 // 4  # three epochs of rows with 600 characters
    assert train.flops == pytest.approx(4 * (linears + hidden * words) * tokens, rel=0.01)
    assert search.flops == pytest.approx(2 * (linears + hidden * words) * 100 * 500 * 600 // 4, rel=0.01)
    assert "about 1,425,000 tokens" in train.work
    assert timed_rate(*train.place) == 0
    assert train.hours({train.place: 0.0}) is None
    assert train.hours({train.place: 1e12}) == (train.flops or 0) / 1e12 / 3600


def test_activations_are_the_bytes_that_a_backward_keeps(tmp_path: Path) -> None:
    """Of the second block: the first has inputs that need no gradient."""
    kept = []
    for layers in (1, 2):
        model = tiny_model("llama", num_hidden_layers=layers, num_key_value_heads=4).to(torch.bfloat16)  # type: ignore[arg-type]
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj", "up_proj", "down_proj"]))
        sizes: dict[int, tuple[int, torch.Tensor]] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, Any] = sizes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = (storage.nbytes(), tensor)
            return tensor

        weights = {each.untyped_storage()._cdata for each in adapted.parameters()}
        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
            adapted.get_base_model().model(input_ids=torch.zeros(8, 64, dtype=torch.long), use_cache=False)
        kept.append(sum(size for key, (size, _) in sizes.items() if key not in weights) / (8 * 64))
    shape = shape_of(str(save_tiny(tmp_path / "base", num_key_value_heads=4)))
    assert shape is not None
    names = [name for name in shape.sides if name.endswith(("q_proj", "up_proj", "down_proj"))]
    assert kept[1] - kept[0] == pytest.approx(block_bytes(shape, 2, names), rel=0.1)  # and what no token has


def planned(folder: Path, **sections: Any) -> RunPlan:
    """The plan of a tiny model's run."""
    if not (folder / "base").exists():
        save_tiny(folder / "base")
    sections["sparsify"] = {"calibration": "arithmetic:train", **sections.get("sparsify", {})}
    recipe = {"model": str(folder / "base"), "output": str(folder / "run"), **sections}
    return plan(Recipe.model_validate(recipe))


@pytest.mark.parametrize(
    ("kind", "sparsity", "export"),
    [
        ("llama", 0.0, {"dtype": "int8"}), ("llama_untied", 0.5, {"dtype": "bf16", "embedding_dtype": "int8"}),
        ("gpt2", 0.5, {"dtype": "fp32"}), ("mixtral", 0.5, {"dtype": "bf16"}), ("gpt_oss", 0.75, {}),
        ("llama", 0.0, {"dtype": "int4", "embedding_dtype": "int4"}), ("phi3", 0.5, {"dtype": "int4"}),
    ],
)  # fmt: skip
def test_a_package_is_planned_at_the_bytes_of_its_file(
    kind: str, sparsity: float, export: dict[str, Any], tmp_path: Path
) -> None:
    """Header included. GPT-2's files hold I x O, Mixtral's experts one by one, GPT-OSS's in a stack, left dense."""
    base = save_tiny(tmp_path / "base", kind)
    sparsify: dict[str, Any] = {**MAGNITUDE, "sparsity": sparsity}
    disk = planned(tmp_path, sparsify=sparsify, export={"format": "package", **export}).stages[-1].disk
    sparse = shears.sparsify(base, tmp_path / "sparse", **sparsify)
    size = (shears.export_adapter(sparse, tmp_path / "out", format="package", **export) / PACKAGE_FILE).stat().st_size
    if export.get("dtype") == "int4" and sparsity:  # every second group ends in half a byte, on average
        assert disk == pytest.approx(size, rel=5e-4)
    else:
        assert disk == size


@pytest.mark.parametrize("masked", [False, True])
def test_an_adapter_takes_room_in_a_planned_package_unless_it_is_merged(masked: bool, tmp_path: Path) -> None:
    adapter = super_adapter(tmp_path / "adapter", save_tiny(tmp_path / "base"), sparse_adapter=masked)
    export = {"format": "package", "sub_adapter": "minimal"}
    file = shears.export_adapter(adapter, tmp_path / "out", **export) / PACKAGE_FILE
    train = {
        "data": "arithmetic:train", "ranks": RANKS, "groups": GROUPS["llama"], "max_steps": 1, "sparse_adapter": masked
    }  # fmt: skip
    run_plan = planned(tmp_path, sparsify={**MAGNITUDE, "sparsity": 0.0}, train=train, export=export)
    assert run_plan.stages[2].disk == file.stat().st_size
    assert (b"lora_A" in file.read_bytes()) is not masked


def test_a_search_on_the_test_rows_is_refused_whatever_their_file_is_called(tmp_path: Path) -> None:
    """As `run` refuses it; a hub set is not fetched to find out."""
    for name in ("validation.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"prompt": "1+1?", "completion": " 2", "answer": 2}\n')
    sections = {
        "train": {"data": "arithmetic:train", "ranks": [4, 2], "max_steps": 1},
        "search": {"data": str(tmp_path / "validation.jsonl")},
        "evaluate": {"task": "number", "data": str(tmp_path / "test.jsonl")},
    }
    with pytest.raises(InputError, match="all 1 rows of .*test.jsonl also occur in .*validation.jsonl"):
        planned(tmp_path, **sections)
    assert planned(tmp_path, **sections | {"evaluate": {"task": "number", "data": "org/name"}})


def test_a_calibration_text_must_be_given_but_for_the_embedded_model(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    for act in (plan, shears.run):
        recipe = Recipe.model_validate({"model": str(tmp_path / "base"), "output": str(tmp_path / "run")})
        with pytest.raises(
            InputError, match=r"sparsify.calibration must be given \(--calibration\) for .*base: name text"
        ):
            act(recipe)
    assert not (tmp_path / "run").exists()
    embedded = Recipe.model_validate({"model": "smollm2-135m", "output": str(tmp_path / "run")})
    assert "of arithmetic:train" in plan(embedded).stages[0].work


def test_a_package_is_refused_and_a_text_to_download_is_named(tmp_path: Path) -> None:
    run_plan = planned(tmp_path, sparsify={"calibration": "nowhere.txt", "num_samples": 2, "sequence_length": 8})
    assert run_plan.stages[0].work == "admm to 50% zeros, 2 x 8 = 16 tokens of nowhere.txt (not on this machine yet)"
    shears.export_adapter(tmp_path / "base", tmp_path / "package", format="package")
    with pytest.raises(InputError, match="a model to prune must be a model folder, got the package"):
        plan(
            Recipe.model_validate(
                {"model": str(tmp_path / "package"), "output": str(tmp_path / "run"), "sparsify": MAGNITUDE}
            )
        )


@pytest.mark.parametrize("path", [path for path in RECIPES if "paper" in path.parts], ids=lambda path: path.stem)
def test_the_papers_recipes_draw_one_configuration_a_step(path: Path) -> None:
    train = load_recipe(path).train
    assert train is not None
    assert train.sampling == "uniform"


@pytest.mark.parametrize("kept", [200, 0])
def test_a_damaged_gguf_file_is_refused_as_the_run_refuses_it(kept: int, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "model.gguf"
    file.write_bytes(whole[:kept] or b"no model")
    with pytest.raises(InputError, match="model.gguf cannot be read"):
        shape_of(str(file))
    with pytest.raises(InputError, match="model.gguf cannot be read"):
        convert_gguf(file)


def with_config(folder: Path, **changes: object) -> Recipe:
    """A recipe whose model has other settings."""
    recipe = load_recipe(write_recipe(folder), NO_SEARCH)
    path = folder / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return recipe


@pytest.mark.parametrize("changes", [{"model_type": "nosuch"}, {"num_attention_heads": 0}])
def test_a_folder_that_transformers_does_not_know_is_one_line(changes: dict[str, object], tmp_path: Path) -> None:
    recipe = with_config(tmp_path, **changes)
    with pytest.raises(InputError, match="config.json cannot be read") as caught:
        plan(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_groups_that_match_nothing_are_refused_before_any_work(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), ["train.groups=c_attn"])
    with pytest.raises(InputError, match="no linear matches target 'c_attn'"):
        plan(recipe, tmp_path / "run")
