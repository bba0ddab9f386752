"""A whole search: on formulas through the library call, and as the stage on a tiny super-adapter."""

import json
import math
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shears.adapt.load import load_super_adapter
from shears.adapt.space import RankConfig
from shears.adapt.train import train
from shears.config import SearchConfig
from shears.config.search import STRATEGIES
from shears.data.examples import load_examples, tokenize_all
from shears.errors import InputError
from shears.records.artifacts import read_json, write_json
from shears.records.folders import CONFIG, partial_folder
from shears.searching.explore import run_search
from shears.searching.measure.evaluators import GaugedEvaluator
from shears.searching.stage import search
from shears.searching.strategies.base import Figures
from tests.oracles.losses import mean_completion_loss
from tests.searching.formulas import a_plan, conflicting, make_space, separable
from tests.tiny import save_tiny, tiny_model

SETTINGS: dict[str, Any] = {
    "strategy": "hill-climbing", "max_evaluations": 6, "device": "cpu", "precision": "fp32",
}  # fmt: skip
OPTIONS_OF_BEFORE = {
    "improvement": "best", "restarts": True, "changes": 1, "order": "random", "population": None, "tournament": None,
    "race_error": 0.05, "race_indifference": 0.0,
}  # fmt: skip


def test_every_strategy_of_the_recipe_is_there() -> None:
    strategy = SearchConfig.model_json_schema()["properties"]["strategy"]
    assert set(strategy["enum"]) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_starts_at_the_heuristic_and_never_chooses_worse(strategy: str) -> None:
    space = make_space(3)
    result = run_search(space, separable(space), a_plan(strategy, 27))
    assert result.evaluations[0].ranks == space.heuristic()
    assert result.chosen.metrics["loss"] <= result.evaluations[0].metrics["loss"]
    assert len({e.ranks for e in result.evaluations}) == len(result.evaluations) <= 27


def test_hill_climbing_on_a_separable_formula_chooses_its_optimum() -> None:
    space = make_space(8)
    assert run_search(space, separable(space), a_plan("hill-climbing", 200)).chosen.metrics["loss"] == 0.0


def test_the_front_is_every_evaluation_that_none_beats_in_both_figures() -> None:
    space = make_space(4)
    result = run_search(space, conflicting(space), a_plan("random", 30))
    costs = {e.ranks: (e.metrics["loss"], e.metrics["parameters"]) for e in result.evaluations}
    expected = {
        ranks
        for ranks, (loss, size) in costs.items()
        if not any(a <= loss and b <= size and (a, b) != (loss, size) for a, b in costs.values())
    }
    assert {e.ranks for e in result.pareto} == expected
    assert result.chosen in result.pareto


def test_the_result_is_plain_data() -> None:
    space = make_space(2)
    data = run_search(space, separable(space), a_plan("heuristic")).as_data()
    assert json.loads(json.dumps(data)) == data
    assert data["chosen"] == data["evaluations"][0] == data["pareto"][0]


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(InputError, match="strategy must be one of heuristic, maximal, .*, rnsga2, got 'magic'"):
        run_search(make_space(1), separable(make_space(1)), a_plan("magic"))


def rows(path: Path, seed: int) -> str:
    generator = random.Random(seed)
    texts = [
        {"prompt": f"{generator.randint(1, 99)}+1=", "completion": f" {generator.randint(1, 9)}"} for _ in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return str(path)


def test_the_stage_writes_the_result_and_the_study(super_adapter: Path, validation: str, tmp_path: Path) -> None:
    folder = search(super_adapter, tmp_path / "search", data=validation, **SETTINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "study.db"]
    result = json.loads((folder / "result.json").read_text())
    assert result["config"] == SearchConfig(data=validation, **SETTINGS).model_dump(mode="json")
    assert len(result["evaluations"]) == 6
    assert result["chosen"] in result["evaluations"]
    assert all(entry in result["evaluations"] for entry in result["pareto"])
    assert isinstance(result["chosen"]["metrics"]["parameters"], int)


class Killed(BaseException):
    """Stands for kill -9 in this process: no handler of ours catches it."""


@pytest.mark.parametrize("storage", [None, "shared"])
def test_interrupted_and_resumed_it_writes_the_same_bytes(
    super_adapter: Path, validation: str, storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data": validation, "storage": storage and f"sqlite:///{tmp_path}/shared.db"}
    whole = search(super_adapter, tmp_path / "whole", **settings)
    (tmp_path / "shared.db").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        die_after(patch, 3)
        with pytest.raises(Killed):
            search(super_adapter, tmp_path / "search", **settings)
    assert not (tmp_path / "search").exists()
    with pytest.raises(InputError, match="continue it with --resume"):
        search(super_adapter, tmp_path / "search", **settings)
    with pytest.raises(InputError, match="seed was 0 and is now 7"):
        search(super_adapter, tmp_path / "search", resume=True, **{**settings, "seed": 7})
    resumed = search(super_adapter, tmp_path / "search", resume=True, **settings)
    assert (resumed / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert not partial_folder(tmp_path / "search").exists()


def die_after(patch: pytest.MonkeyPatch, number: int, asked: list[RankConfig] | None = None) -> None:
    """Let a search die when it has measured so many configurations, those in `asked` included."""
    measured, asked = GaugedEvaluator.__call__, [] if asked is None else asked

    def dying(self: GaugedEvaluator, ranks: RankConfig) -> Figures:
        if len(asked) >= number:
            raise Killed
        asked.append(ranks)
        return measured(self, ranks)

    patch.setattr(GaugedEvaluator, "__call__", dying)


def test_a_search_begun_with_options_that_were_removed_since_is_found_and_goes_on(
    super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record has more keys and lacks some, its study another name; a race only estimated one configuration."""
    whole = search(super_adapter, tmp_path / "whole", data=validation, **SETTINGS)
    with monkeypatch.context() as patch:
        die_after(patch, 3)
        with pytest.raises(Killed):
            search(super_adapter, tmp_path / "search", data=validation, **SETTINGS)
    work = partial_folder(tmp_path / "search")
    record = read_json(work / CONFIG)
    for name in ("test", "study", "columns", "constraint", "tie_layers", "backend", "step", "reference_points"):
        del record[name]
    write_json(work / CONFIG, {**record, **OPTIONS_OF_BEFORE})
    with closing(sqlite3.connect(work / "study.db")) as study, study:
        study.execute("UPDATE studies SET study_name = 'search-0123456789ab'")
        [[text]] = study.execute("SELECT value_json FROM study_user_attributes WHERE key = 'shears'")
        identity = {**json.loads(text), "way": json.dumps({"improvement": "best", "restarts": True})}
        study.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'shears'", [json.dumps(identity)])
        study.execute("UPDATE trial_user_attributes SET value_json = '0.0' WHERE key = 'loss' AND trial_id = 3")
        study.execute("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (3, 'examples', '4')")
    asked = list[RankConfig]()
    with monkeypatch.context() as patch:
        die_after(patch, 100, asked)
        resumed = search(super_adapter, tmp_path / "search", resume=True, data=validation, **SETTINGS)
    assert (resumed / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert len(asked) == 4, "the two that were measured are not measured again"


def test_changed_validation_data_is_not_mixed_with_the_old(
    super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, 2)
        with pytest.raises(Killed):
            search(super_adapter, tmp_path / "search", data=validation, **SETTINGS)
    rows(Path(validation), 2)
    with pytest.raises(InputError, match="its data differs"):
        search(super_adapter, tmp_path / "search", resume=True, data=validation, **SETTINGS)


@pytest.mark.parametrize("good", [0, 2])
def test_a_search_that_is_refused_leaves_its_study_only_if_something_was_evaluated(
    good: int, super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, asked = GaugedEvaluator.__call__, list[RankConfig]()

    def broken(self: GaugedEvaluator, ranks: RankConfig) -> Figures:
        asked.append(ranks)
        return measured(self, ranks) if len(asked) <= good else {"loss": math.nan}

    monkeypatch.setattr(GaugedEvaluator, "__call__", broken)
    with pytest.raises(InputError, match="must return a finite 'loss'"):
        search(super_adapter, tmp_path / "search", data=validation, **SETTINGS)
    assert partial_folder(tmp_path / "search").exists() == (good > 0)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("search")] == ["search.partial"] * bool(
        good
    )


def test_a_16_bit_model_is_searched_by_losses_of_fp32(tmp_path: Path) -> None:
    """What one rank changes is less than what bf16 rounds, be it in the forward or in the weights it is made with."""
    base, data = save_tiny(tmp_path / "base"), rows(tmp_path / "rows.jsonl", 0)
    tiny_model().bfloat16().save_pretrained(base)
    settings: dict[str, Any] = {"ranks": (4, 2), "max_steps": 2, "learning_rate": 1e-2, "sampling": "uniform"}
    adapter = train(base, tmp_path / "adapter", data=data, device="cpu", seed=1, **settings)
    asked: dict[str, Any] = {"data": rows(tmp_path / "validation.jsonl", 1), "device": "cpu", "strategy": "heuristic"}
    found = {}
    for precision in ("auto", "fp32", "bf16"):
        folder = search(adapter, tmp_path / precision, precision=precision, **asked)
        found[precision] = json.loads((folder / "result.json").read_text())["chosen"]["metrics"]["loss"]
    loaded = load_super_adapter(adapter, dtype="fp32", device="cpu")
    loaded.elastic.activate(loaded.elastic.space.heuristic())
    examples = load_examples(asked["data"], "question", loaded.tokenizer)
    expected = mean_completion_loss(loaded.model, tokenize_all(examples, loaded.tokenizer, 256), 256, 32)
    assert found["auto"] == found["fp32"] == pytest.approx(expected, rel=1e-6)
    assert abs(found["bf16"] - expected) > 1e-5


def test_the_accuracy_of_a_task_can_be_searched(super_adapter: Path, validation: str, tmp_path: Path) -> None:
    folder = search(
        super_adapter, tmp_path / "search", data=validation, objective="accuracy", task="number", max_new_tokens=2,
        **{**SETTINGS, "strategy": "nsga2", "max_evaluations": 4},
    )  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert 0.0 <= result["chosen"]["metrics"]["accuracy"] <= 1.0


def test_a_record_without_max_length_counts_as_its_default(
    super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(super_adapter, tmp_path / "adapter")
    record = json.loads((copy / "search_space.json").read_text())
    del record["config"]["max_length"]
    (copy / "search_space.json").write_text(json.dumps(record))
    found = [
        search(each, tmp_path / f"found-{number}", data=validation) for number, each in enumerate((copy, super_adapter))
    ]
    chosen = [json.loads((folder / "result.json").read_text())["chosen"] for folder in found]
    assert chosen[0] == chosen[1]


def test_a_misspelt_key_is_named(super_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'search\.strategy'"):
        search(super_adapter, tmp_path / "search", data="x.jsonl", stratgy="random")


def test_what_is_no_super_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a super-adapter"):
        search(tmp_path, tmp_path / "search", data="x.jsonl")


def test_in_a_shared_storage_the_same_search_is_joined_and_another_one_refused_or_named(
    super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data": validation, "storage": f"journal://{tmp_path}/shared.log"}
    first = search(super_adapter, tmp_path / "first", resume=True, **settings)
    with pytest.raises(InputError, match="must be new, and it has evaluations; join it with --resume"):
        search(super_adapter, tmp_path / "second", **settings)
    with pytest.raises(InputError, match="its precision, seed differ; name another with --study"):
        search(super_adapter, tmp_path / "third", resume=True, **{**settings, "seed": 7, "precision": "auto"})
    search(super_adapter, tmp_path / "fourth", study="seven", **{**settings, "seed": 7})
    with monkeypatch.context() as patch:
        die_after(patch, 0)
        late = search(super_adapter, tmp_path / "fifth", resume=True, **settings)
    assert (late / "result.json").read_bytes() == (first / "result.json").read_bytes()
    assert [path.name for path in late.iterdir()] == ["result.json"]
