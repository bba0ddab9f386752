"""The verb on a tiny super-adapter: what it writes, how it resumes, what it refuses, and workers on one study."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from shears.adapt.space import RankConfig
from shears.cli.tables import print_search
from shears.config import SearchConfig
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.records.artifacts import read_json
from shears.records.folders import partial_folder
from shears.searching import study as study_module
from shears.searching.objectives import open_objective
from shears.searching.outcome import Figures
from shears.searching.study import search
from tests.searching.postgres import PASSWORD, running_server
from tests.searching.sums import rows

SETTINGS: dict[str, Any] = {
    "strategy": "hill-climbing", "max_evaluations": 6, "device": "cpu", "precision": "fp32",
}  # fmt: skip
NUMBER: dict[str, Any] = {"task": "number", "max_new_tokens": 2}


class Killed(BaseException):
    """Stands for kill -9 in this process: no handler of ours catches it."""


def die_after(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let a search die when it has measured so many configurations."""
    opened, asked = open_objective, list[RankConfig]()

    def dying(*arguments: Any) -> Any:
        measure = opened(*arguments)

        def figures(ranks: RankConfig) -> Figures:
            if len(asked) >= number:
                raise Killed
            asked.append(ranks)
            return measure(ranks)

        return figures

    patch.setattr(study_module, "open_objective", dying)


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "result.json")
    return found


def test_the_result_holds_every_evaluation_and_export_takes_it(
    super_adapter: Path, validation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = "parameters<=1000k"
    folder = search(super_adapter, tmp_path / "search", data=validation, constraint=bound, **SETTINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "study.journal"]
    result = result_of(folder)
    config = SearchConfig(data=validation, constraint=(bound,), **SETTINGS)
    assert result["config"] == config.model_dump(mode="json")
    assert len(result["evaluations"]) == 6
    assert result["chosen"] in result["evaluations"]
    assert all(entry in result["evaluations"] for entry in result["pareto"])
    assert isinstance(result["chosen"]["metrics"]["parameters"], int)
    exported = export_adapter(super_adapter, tmp_path / "sub", sub_adapter=str(folder))
    assert read_json(exported / "sub_adapter.json")["ranks"] == result["chosen"]["ranks"]
    print_search(folder / "result.json")
    assert f"on the Pareto front of loss and parameters with {bound}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("task", ["number", "choices"])
def test_accuracy_and_loss_can_both_be_objectives(task: str, super_adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "choices.jsonl"
    lines = [{"prompt": f"{n}+1=", "completion": str(n + 1), "choices": ["1", str(n + 1)]} for n in range(5)]
    data.write_text("".join(json.dumps({**line, "answer": line["completion"]}) + "\n" for line in lines))
    asked = {"objective": "accuracy,loss", "task": task, "max_new_tokens": 2}
    folder = search(super_adapter, tmp_path / "found", data=str(data), **{**SETTINGS, "strategy": "nsga2", **asked})
    result = result_of(folder)
    assert result["objectives"] == ["accuracy", "loss"]
    assert all(each["metrics"].keys() >= {"accuracy", "loss", "parameters"} for each in result["evaluations"])
    best = max(result["evaluations"], key=lambda each: (each["metrics"]["accuracy"], -each["metrics"]["loss"]))
    assert result["chosen"]["metrics"] == best["metrics"]


def test_interrupted_and_resumed_it_writes_the_same_bytes(
    super_adapter: Path, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data": validation}
    whole = search(super_adapter, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        die_after(patch, 3)
        with pytest.raises(Killed):
            search(super_adapter, tmp_path / "search", **settings)
    assert not (tmp_path / "search").exists()
    with pytest.raises(InputError, match="seed was 0 and is now 7"):
        search(super_adapter, tmp_path / "search", **{**settings, "seed": 7})
    other = rows(tmp_path / "other.jsonl", 2)
    Path(validation).rename(tmp_path / "kept.jsonl")
    Path(other).rename(validation)
    with pytest.raises(InputError, match="data_sha256 was"):
        search(super_adapter, tmp_path / "search", **settings)
    (tmp_path / "kept.jsonl").rename(validation)
    with monkeypatch.context() as patch:
        die_after(patch, 3)  # of six, the first three are known
        resumed = search(super_adapter, tmp_path / "search", **settings)
    assert (resumed / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert not partial_folder(tmp_path / "search").exists()


@pytest.mark.parametrize("settings", [{}, NUMBER])
def test_the_gain_is_measured_on_test_examples_and_changes_no_evaluation(
    settings: dict[str, Any], super_adapter: Path, validation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SETTINGS, "max_evaluations": 3, **settings}
    test = rows(tmp_path / "test.jsonl", 2)
    folder = search(super_adapter, tmp_path / "out", data=validation, test=test, **given)
    gain = result_of(folder)["gain"]
    assert gain["figure"] == ("accuracy" if settings else "loss")
    assert gain["test"]["n"] == 8
    without = result_of(search(super_adapter, tmp_path / "without", data=validation, **given))
    assert without["evaluations"] == result_of(folder)["evaluations"]
    if not settings:
        alone = result_of(search(super_adapter, tmp_path / "alone", data=test, **{**given, "strategy": "heuristic"}))
        assert alone["chosen"]["metrics"]["loss"] == gain["test"]["heuristic"]
    print_search(folder / "result.json")
    assert "on 8 test examples: " in capsys.readouterr().out


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt key": ({"stratgy": "random"}, r"did you mean 'search\.strategy'"),
    "an unknown strategy": ({"strategy": "magic"}, "search.strategy"),
    "an unknown figure": ({"objective": "latency"}, "search.objective"),
    "accuracy without a task": ({"objective": "accuracy"}, "task must be given to measure accuracy"),
    "a bound of another form": (
        {"constraint": "loss<3"},
        "constraint must be loss, accuracy or parameters, then <= or >=",
    ),
    "a space too large": ({"strategy": "exhaustive"}, "strategy exhaustive needs max_evaluations of at least 729"),
    "no data": ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    "the same test": ({"test": "DATA"}, "search.test must be other examples than data"),
    "the test split": ({"test": "RENAMED"}, r"all 8 rows of .*renamed.jsonl also occur in .*validation.jsonl"),
    "a bound that none meets": ({"constraint": "loss<=0.001"}, "none of the 1 evaluated ones does; the nearest has"),
    "another database": ({"storage": "oracle+none://db"}, "storage cannot be used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_searched_is_refused_in_one_line(
    case: str, super_adapter: Path, validation: str, tmp_path: Path
) -> None:
    settings, message = REFUSED[case]
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text("".join(reversed(Path(validation).read_text().splitlines(keepends=True))))
    files = {"DATA": validation, "RENAMED": str(renamed)}
    given = {"data": validation, **{key: files.get(value, value) for key, value in settings.items()}}
    with pytest.raises(InputError, match=message) as error:
        search(super_adapter, tmp_path / "found", **given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("found*"))


def test_what_is_no_super_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a super-adapter"):
        search(tmp_path, tmp_path / "search", data="x.jsonl")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="pip install 'shears-llm[postgresql]'")
    with running_server() as server:
        yield server.url(PASSWORD)


WORKER = """
import sys, time
from shears.searching import study

study.HEARTBEAT = 1
opened = study.open_objective

def slow(*arguments):
    measure = opened(*arguments)
    return lambda ranks: (time.sleep(0.5), measure(ranks))[1]

study.open_objective = slow
adapter, output, data, storage = sys.argv[1:]
study.search(adapter, output, data=data, storage=storage, strategy="random", max_evaluations=6, device="cpu",
             precision="fp32")
"""


def test_a_worker_on_postgresql_takes_over_from_a_killed_one(
    super_adapter: Path, validation: str, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "HEARTBEAT", 1)
    words = [sys.executable, "-c", WORKER, str(super_adapter), str(tmp_path / "killed"), validation, database]
    victim = subprocess.Popen(words)
    storage = optuna.storages.RDBStorage(database.replace("postgresql", "postgresql+psycopg", 1))
    while not (found := storage.get_all_studies()) or storage.get_n_trials(found[0]._study_id) < 4:
        assert victim.poll() is None
        time.sleep(0.05)
    victim.kill()
    victim.wait()
    trials = storage.get_all_trials(found[0]._study_id)
    storage.remove_session()
    storage.engine.dispose()
    given = {**SETTINGS, "strategy": "random", "max_evaluations": 6, "storage": database}
    folder = search(super_adapter, tmp_path / "survivor", data=validation, **given)
    evaluations = result_of(folder)["evaluations"]
    known = [dict(sorted(trial.params.items())) for trial in trials if trial.state is TrialState.COMPLETE]
    assert [each["ranks"] for each in evaluations[: len(known)]] == known
    begun = trials[-1].params.items()  # perhaps not of all groups
    assert any(begun <= each["ranks"].items() for each in evaluations), "the killed worker's last one is retried"
    assert len(evaluations) == 6
    assert PASSWORD not in (folder / "result.json").read_text()
