"""Messages name the wrong key and the fix; flags override --set, --set the file, the file the defaults."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shears.config import EvaluateConfig, ExportConfig, Recipe, SearchConfig, SparsifyConfig, TrainConfig, WriteConfig
from shears.config.resolve import build, load_recipe, override, read_yaml, stage_values
from shears.errors import InputError

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/**/*.yaml"))
UNTRAINED = ("qwen2.5-coder-0.5b-gsm8k", "qwen2.5-coder-1.5b-gsm8k")  # pruned on the model's own answers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.model
    assert recipe.sparsify
    assert (recipe.train is None) == (path.stem in UNTRAINED)


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    recipe = load_recipe(RECIPES[0])
    assert build(Recipe, "", yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainConfig, {"data": "x", "alhpa": 3}, "unknown key 'x.alhpa'; did you mean 'x.alpha'?"),
        (TrainConfig, {}, "x.data must be given (--data)"),
        (TrainConfig, {"data": "x", "ranks": "16,32"}, "x.ranks must be distinct and largest first, got 16,32"),
        (TrainConfig, {"data": "x", "micro_batch_size": 5}, "micro_batch_size must divide batch_size (16), got 5"),
        (SparsifyConfig, {"sparsity": 1.5}, "x.sparsity must be less than 1, got 1.5"),
        (SparsifyConfig, {"method": "wnda"}, "'wanda', 'magnitude', 'sparsegpt' or 'admm', got 'wnda'"),
        (TrainConfig, {"data": "x", "seed": -1}, "x.seed must be greater than or equal to 0, got -1"),
        (TrainConfig, {"data": "x", "epochs": float("inf")}, "x.epochs must be a finite number, got inf"),
        (TrainConfig, {"data": "x", "ranks": True}, "x.ranks must be a valid tuple, got True"),
        (SearchConfig, {"data": "x", "objective": "accuracy"}, "task must be given to measure accuracy"),
        (
            ExportConfig,
            {"dtype": "int8"},
            "dtype and embedding_dtype need format package or gguf, got format peft; add --format package",
        ),
        (
            EvaluateConfig,
            {"task": "choices", "data": "x", "num_beams": 4},
            "num_beams above 1 needs a task that generates answers, got 4 beams with",
        ),
        (TrainConfig, {"data": "x", "epochs": 1e308}, "x.epochs must be less than or equal to 1000000, got 1e+308"),
    ],
)
def test_mistakes_are_explained(kind: type[TrainConfig], values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(kind, "x", values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_inside_a_section_of_a_recipe_are_named_with_it() -> None:
    with pytest.raises(InputError) as caught:
        build(Recipe, "", {"trian": {}, "train": {"data": "x", "epoch": 2}})
    assert "unknown key 'trian'; did you mean 'train'?" in str(caught.value)
    assert "unknown key 'train.epoch'; did you mean 'train.epochs'?" in str(caught.value)


def test_flags_win_over_set_over_file_over_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("sparsify:\n  sparsity: 0.1\n  num_samples: 1\n  seed: 1\n")
    values = stage_values("sparsify", str(path), ["sparsify.num_samples=2", "sparsify.seed=2"], {"seed": "3"})
    config = build(SparsifyConfig, "sparsify", values)
    assert (config.sparsity, config.num_samples, config.seed, config.sequence_length) == (0.1, 2, 3, 512)


@given(st.integers(1, 999), st.floats(0.001, 0.9))
def test_set_reads_values_as_yaml(number: int, share: float) -> None:
    values = override({}, [f"sparsify.num_samples={number}", f"sparsify.sparsity={share!r}"])
    config = build(SparsifyConfig, "sparsify", values["sparsify"])
    assert (config.num_samples, config.sparsity) == (number, share)


@pytest.mark.parametrize("setting", ["alpha", "=3", ""])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=r"--set must be section\.key=value"):
        override({}, [setting])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\0", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml (must hold sections|cannot be read)"):
        read_yaml(path)


def test_a_missing_file_and_a_stray_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must exist, got no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="unknown key 'sparsfy'; did you mean 'sparsify'"):
        stage_values("sparsify", None, ["sparsfy.seed=1"], {})
    (tmp_path / "five.yaml").write_text("5: {}\n")
    with pytest.raises(InputError, match=r"five\.yaml must hold sections"):
        stage_values("train", str(tmp_path / "five.yaml"), [], {})
    with pytest.raises(InputError, match="train must be a section of keys, got 3"):
        stage_values("train", None, ["train=3"], {})


def test_a_pattern_is_not_read_as_a_number_in_base_60(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nsparsify: {pattern: 2:4, sparsity: 0.5}\n")
    assert load_recipe(path).sparsify.pattern == "2:4"
    assert load_recipe(path, ["sparsify.pattern=4:8"]).sparsify.pattern == "4:8"
    assert load_recipe(path, ["sparsify.seed=1_000", "sparsify.sparsity=5.0e-1"]).sparsify.seed == 1000


def test_invalid_yaml_values_are_text_or_an_error(tmp_path: Path) -> None:
    assert override({}, ["sparsify.calibration=2024-13-45"]) == {"sparsify": {"calibration": "2024-13-45"}}
    path = tmp_path / "recipe.yaml"
    path.write_text("output: 2024-02-30\nmodel: 2024-02-20\n")
    recipe = load_recipe(path)
    assert (recipe.output, recipe.model) == ("2024-02-30", "2024-02-20")
    for text in ("[" * 3000, "threads: 0x_"):
        path.write_text(text)
        with pytest.raises(InputError, match="cannot be read"):
            load_recipe(path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch ran]", "!!python/name:os.system", "!any x"])
def test_a_recipe_names_no_code(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"model: {tag}\n")
    with pytest.raises(InputError, match="could not determine a constructor"):
        read_yaml("recipe.yaml")
    assert not (tmp_path / "ran").exists()


def test_a_count_that_no_computer_could_read_is_refused() -> None:
    for tokens in ("9999999999999999G", "1.5"):
        with pytest.raises(InputError, match="x.tokens must be"):
            build(WriteConfig, "x", {"tokens": tokens})
    assert build(WriteConfig, "x", {"tokens": "1.5k"}).tokens == 1_500
