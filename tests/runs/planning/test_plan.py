"""A plan says what a run will do, need and leave, touches nothing, and can be made of every recipe offline."""

import json
import sys
from pathlib import Path

import pytest

import shears
from shears.cli import main
from shears.config import Recipe
from shears.config.embedded import EMBEDDED
from shears.config.resolve import load_recipe
from shears.errors import InputError
from shears.runs.planning.needs import packed_bytes
from shears.runs.planning.plan import plan
from shears.runs.planning.shapes import PUBLISHED, shape_of
from tests.end_to_end.recipe import write_recipe
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
NO_SEARCH = ["search=null", "evaluate=null", "train.max_steps=null", "train.epochs=0.5"]
MOVED = ["sparsify.recover_by=moments", "sparsify.recover_rank=2"]
SIZES = {"smollm2-135m": 134_515_008, "huggyllama/llama-7b": 6_738_415_616, "huggyllama/llama-13b": 13_015_864_320,
         "mosaicml/mpt-7b": 6_649_286_656}  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned_offline(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    found = plan(recipe, tmp_path / "run")
    names = [stage.name for stage in found.stages]
    assert names == ["sparsify", "train", "search", "export", "evaluate"]
    assert {stage.state for stage in found.stages} == {"to do"}
    assert found.parameters == SIZES[recipe.model or ""]
    assert all(stage.memory for stage in found.stages)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_headed_by_its_command_figure_and_cost(path: Path) -> None:
    head = path.read_text().split("\nmodel:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"shears run {path.relative_to(ROOT)} --output" in head
    assert "Expect" in head
    assert "Time" in head or "Takes" in head
    assert "paper" not in path.parts or "Hardware" in head


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_the_size_that_is_published(name: str) -> None:
    shape = shape_of(name)
    assert shape is not None
    assert shape.parameters == SIZES[name]
    assert set(EMBEDDED) <= set(PUBLISHED)


def test_a_plan_comes_true(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), NO_SEARCH)
    before = plan(recipe, tmp_path / "run")
    assert before.parameters == tiny_model().num_parameters()
    shears.run(recipe, tmp_path / "run")
    space = json.loads((tmp_path / "run" / "super_adapter" / "search_space.json").read_text())
    sparsified, trained, exported = before.stages
    assert trained.work.startswith(f"{space['num_steps']} steps of 4 examples, 48 examples")
    assert trained.disk == 4 * space["num_parameters"]["maximal"]
    assert exported.disk == 4 * space["num_parameters"]["heuristic"]
    weights = sum(file.stat().st_size for file in (tmp_path / "run" / "sparse").glob("*.safetensors"))
    assert sparsified.disk == pytest.approx(weights, rel=0.01)
    assert {stage.state for stage in plan(recipe, tmp_path / "run").stages} == {"done"}
    with pytest.raises(InputError, match=r"train\.alpha was 12\.0 and is now 99"):
        plan(load_recipe(tmp_path / "recipe.yaml", [*NO_SEARCH, "train.alpha=99"]), tmp_path / "run")


def test_figures_of_other_settings_or_data_are_still_to_be_measured(tmp_path: Path) -> None:
    no_search = ["search=null", "export.ranks=heuristic"]
    path, folder = write_recipe(tmp_path), tmp_path / "run"
    shears.run(load_recipe(path, no_search), folder)

    def states(*settings: str) -> list[str]:
        return [stage.state for stage in plan(load_recipe(path, [*no_search, *settings]), folder).stages]

    assert states() == states("evaluate.template=question") == ["done"] * 4
    assert states("evaluate.limit=3") == states("evaluate.template=alpaca") == ["done"] * 3 + ["to do"]
    (tmp_path / "test.jsonl").write_text((tmp_path / "validation.jsonl").read_text())
    assert states() == ["done"] * 3 + ["to do"]


@pytest.mark.parametrize(("quantize", "bits"), [("nf4", 4.5), ("int8", 8)])
def test_a_quantized_model_takes_its_bits_while_it_is_trained(quantize: str, bits: float, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    plain, held = (
        plan(load_recipe(recipe, [*NO_SEARCH, f"train.quantize={name}"]), tmp_path / "run").stages
        for name in ("none", quantize)
    )
    shape = shape_of(load_recipe(recipe).model or "")
    assert shape is not None
    assert plain[1].memory is not None
    assert held[1].memory is not None
    saved = plain[1].memory - held[1].memory
    assert saved == pytest.approx((4 - bits / 8) * shape.linear_weights, rel=0.15)  # the file is more than its weights
    assert (plain[1].disk, plain[0], plain[2]) == (held[1].disk, held[0], held[2])


def test_a_sparse_model_of_another_number_format_has_its_size(tmp_path: Path) -> None:
    path, most = write_recipe(tmp_path), 4 * tiny_model().num_parameters()
    settings = ["search.strategy=heuristic", "export.format=merged"]
    plain = plan(load_recipe(path, settings), tmp_path / "plain").stages
    halved = plan(load_recipe(path, [*settings, "sparsify.dtype=bf16"]), tmp_path / "run").stages
    assert [stage.name for stage in halved] == ["sparsify", "train", "search", "export", "evaluate"]
    assert halved[0].disk == halved[3].disk == most // 2
    assert plain[0].memory == halved[0].memory  # pruned in fp32 whatever it is saved in
    assert (plain[1].memory or 0) - (halved[1].memory or 0) == pytest.approx(most / 2, rel=0.05)
    assert halved[2].memory == pytest.approx(plain[2].memory, rel=0.05)  # losses are measured in fp32
    sixteen = plan(load_recipe(path, [*settings, "sparsify.dtype=bf16", "search.precision=bf16"]), tmp_path / "run")
    assert (plain[2].memory or 0) - (sixteen.stages[2].memory or 0) == pytest.approx(most / 2, rel=0.05)
    assert halved[4].memory == pytest.approx(most, rel=0.05)  # of the dense model, which is measured too
    sparse = shears.sparsify(tmp_path / "base", tmp_path / "sparse", dtype="bf16", num_samples=4, sequence_length=32)
    assert halved[0].disk == pytest.approx((sparse / "model.safetensors").stat().st_size, rel=0.05)


def test_models_are_evaluated_in_the_number_format_asked_for(tmp_path: Path) -> None:
    path, most = write_recipe(tmp_path), 4 * tiny_model().num_parameters()
    tiny_model().bfloat16().save_pretrained(tmp_path / "base")

    def memory(*settings: str) -> int:
        return plan(load_recipe(path, ["search=null", *settings]), tmp_path / "run").stages[-1].memory or 0

    own, wide = memory(), memory("evaluate.precision=fp32")  # in 16 bits it would compute in 16
    assert wide - own == pytest.approx(most / 2, rel=0.1)
    assert memory("evaluate.precision=bf16") == own
    assert memory("evaluate.dtype=fp32") == wide
    assert memory("evaluate.precision=fp32", "evaluate.dtype=bf16") == pytest.approx(own, rel=0.05)


def test_moments_of_a_recovery_are_held_only_where_there_is_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    plain, without, moved = (
        plan(load_recipe(path, settings), tmp_path / "run").stages[0].memory or 0
        for settings in ([], ["sparsify.recover_by=moments"], MOVED)
    )
    assert plain == without < moved


def test_an_embedded_model_is_planned_alike_before_and_after_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in the package index in four bits, and in the cache, once used, in fp32."""
    monkeypatch.setenv("SHEARS_CACHE", str(tmp_path / "nothing"))
    shape = shape_of("smollm2-135m")
    assert shape is not None
    assert shape.folder is None
    assert shape.file_bytes == 4 * SIZES["smollm2-135m"]


def test_what_is_not_here_is_said_to_be_unknown(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"model": "someone/something", "train": {"data": "nowhere.jsonl"}})
    found = plan(recipe, tmp_path / "run")
    assert found.parameters is None
    assert {(stage.memory, stage.disk) for stage in found.stages} == {(None, None)}
    assert "nowhere.jsonl is not here yet" in found.stages[1].work


def with_config(folder: Path, **changes: object) -> Recipe:
    """A recipe whose model has other settings."""
    recipe = load_recipe(write_recipe(folder), NO_SEARCH)
    path = folder / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return recipe


@pytest.mark.parametrize("changes", [{"model_type": "nosuch"}, {"hidden_size": "x"}, {"num_attention_heads": 0}])
def test_a_folder_that_transformers_does_not_know_is_one_line(changes: dict[str, object], tmp_path: Path) -> None:
    recipe = with_config(tmp_path, **changes)
    with pytest.raises(InputError, match="base must .*(language model|transformers knows)") as caught:
        plan(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_torn_config_is_one_line(tmp_path: Path) -> None:
    recipe = with_config(tmp_path)
    path = tmp_path / "base" / "config.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match="base must hold the config.json of a model .*knows: .*not a valid JSON"):
        plan(recipe, tmp_path / "run")


def test_a_quantised_folder_is_planned(tmp_path: Path) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert plan(with_config(tmp_path, quantization_config=settings), tmp_path / "run").parameters


def test_groups_that_match_nothing_are_refused_before_any_work(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), ["train.groups=c_attn"])
    with pytest.raises(InputError, match="no linear matches target 'c_attn'"):
        plan(recipe, tmp_path / "run")


def test_a_dry_run_prints_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["shears", "run", str(write_recipe(tmp_path)), "--output", str(tmp_path / "run"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = " ".join(capfd.readouterr()[0].split())
    assert "sparsify │ to do │ wanda to 50%, 4 x 64 = 256 tokens of" in printed
    assert not (tmp_path / "run").exists()


def test_a_package_is_planned_at_its_size() -> None:
    """SmolLM2-135M at 50 %, 16-bit values: a bit and half of two bytes a weight, embeddings in 16 bits beside."""
    weights, others = 106_168_320, 28_346_688
    assert packed_bytes(weights, others, 0.5) == 106_168_320 // 8 + 106_168_320 + 2 * 28_346_688
    assert packed_bytes(8, 0, 0.0) == 16  # what packing would make larger stays as it is
    assert packed_bytes(16, 4, 0.5, each=1, beside=4) == 2 + 8 + 16
