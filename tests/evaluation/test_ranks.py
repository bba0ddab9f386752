"""Evaluation of a super-adapter at its ranks, natively and by transformers, and of packages as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.adapt.train import train
from shears.config import EvaluateConfig
from shears.errors import InputError
from shears.evaluation.records import TextJournal
from shears.evaluation.run import evaluate, open_subject
from shears.export.peft import export_adapter
from shears.models.ref import resolve
from shears.runtime.loading import load
from tests.runtime.native.decoders import extension_is_missing
from tests.searching.adapters import rows
from tests.tiny import save_tiny

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

RANKS = (4, 2, 1)
OPTIONS: dict[str, Any] = {"task": "number", "max_new_tokens": 6, "precision": "fp32", "device": "cpu"}


def _trained(folder: Path, masked: bool) -> Path:
    """Return a folder with a base, half of whose weights are zero, and a super-adapter that changes its answers."""
    shears.sparsify(str(save_tiny(folder / "dense")), folder / "base", sparsity=0.5, method="magnitude", device="cpu")
    train(
        folder / "base", folder / "adapter", data=rows(folder / "train.jsonl", 0), ranks=RANKS, max_steps=4,
        batch_size=4, learning_rate=0.5, alpha=64, device="cpu", precision="fp32", sparse_adapter=masked,
    )  # fmt: skip
    rows(folder / "test.jsonl", 3)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("trained"), masked=False)


def _measured(folder: Path, **changes: Any) -> dict[str, Any]:
    options = {**OPTIONS, "data": str(folder / "test.jsonl"), **changes}
    return evaluate(str(folder / "base"), None, str(folder / "adapter"), **options).as_data()


def _outputs(data: dict[str, Any], rank: int) -> list[str]:
    return [record["by_rank"][str(rank)]["output"] for record in data["records"]]


@pytest.mark.parametrize("masked", [False, True])
def test_all_ranks_at_once_answer_as_each_alone_and_as_transformers(
    trained: Path, tmp_path: Path, masked: bool
) -> None:
    folder = _trained(tmp_path, masked=True) if masked else trained
    native = _measured(folder, ranks="all", backend="native")
    assert native == _measured(folder, ranks="all", backend="transformers")
    assert [point["rank"] for point in native["curve"]["points"]] == list(RANKS)
    alone = _measured(folder, ranks=2, backend="native")
    assert [record["output"] for record in alone["records"]] == _outputs(native, 2)
    assert "curve" not in alone
    assert len({str(_outputs(native, rank)) for rank in RANKS}) == 3


def test_a_rank_answers_as_the_exported_adapter_of_that_rank(trained: Path, tmp_path: Path) -> None:
    curve = _measured(trained, ranks="all")
    for name, rank in (("maximal", 4), ("minimal", 1)):
        sub_adapter = export_adapter(trained / "adapter", tmp_path / name, ranks=name)
        options = {**OPTIONS, "data": str(trained / "test.jsonl")}
        alone = evaluate(str(trained / "base"), None, str(sub_adapter), **options, backend="transformers")
        assert [record["output"] for record in alone.records] == _outputs(curve, rank)
        parameters = {point["rank"]: point["parameters"] for point in curve["curve"]["points"]}
        assert parameters[rank] == shears.inspect(sub_adapter)["parameters"]


class Killed(BaseException):
    """Stands for a kill."""


def test_a_killed_curve_goes_on_rank_by_rank_with_the_same_bytes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = str(trained / "base"), str(trained / "adapter")
    options = {**OPTIONS, "data": str(trained / "test.jsonl"), "ranks": "all"}
    evaluate(base, tmp_path / "whole.json", adapter, **options)
    put, count = TextJournal.put, 0
    num = json.loads((tmp_path / "whole.json").read_text())["n"]

    def dying(self: TextJournal, *arguments: Any) -> None:
        nonlocal count
        put(self, *arguments)
        count += 1
        if count == num + 2:  # in the second rank
            raise Killed

    monkeypatch.setattr(TextJournal, "put", dying)
    with pytest.raises(Killed):
        evaluate(base, tmp_path / "killed.json", adapter, **options)
    evaluate(base, tmp_path / "killed.json", adapter, **options)
    assert count == 3 * num
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.json", "whole.json"]


def test_choices_have_a_curve_too(trained: Path) -> None:
    path = trained / "choices.jsonl"
    lines = [{"prompt": f"{n} +", "completion": " 1", "choices": [" 1", " 2"], "answer": " 1"} for n in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = _measured(trained, task="choices", data=str(path), ranks="all")
    assert [point["n"] for point in data["curve"]["points"]] == [5, 5, 5]
    assert "output" not in data["records"][0]["by_rank"]["4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": 3}, "ranks must be all or one of 4, 2, 1, got 3"),
        ({"ranks": "largest"}, "ranks must be heuristic, maximal, minimal or a JSON file, got 'largest'"),
        ({"ranks": "all", "task": "perplexity"}, "ranks all needs a task with right and wrong answers"),
    ],
)
def test_wrong_ranks_are_one_error(trained: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _measured(trained, **changes)


def test_ranks_need_a_super_adapter(trained: Path) -> None:
    with pytest.raises(InputError, match="ranks needs a super-adapter, got ranks all and no adapter"):
        evaluate(str(trained / "base"), data=str(trained / "test.jsonl"), ranks="all", **OPTIONS)


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_a_package_answers_by_its_own_decoder_as_when_it_is_served(tmp_path: Path, values: str) -> None:
    shears.sparsify(str(save_tiny(tmp_path / "dense")), tmp_path / "sparse", sparsity=0.6, method="magnitude")
    package = export_adapter(tmp_path / "sparse", tmp_path / "package", format="package", values=values)
    options = {**OPTIONS, "precision": "auto", "data": rows(tmp_path / "test.jsonl", 3)}
    evaluate(str(package), tmp_path / "native.json", **options)
    record = json.loads((tmp_path / "native.json").read_text())
    assert (record["backend"], record["values"]) == ("native", values)
    subject = open_subject(resolve(str(package)), None, EvaluateConfig(**options))
    assert all(parameter.is_meta for parameter in subject.model.parameters())
    engine = load(str(package))
    served = [engine.generate(each["prompt"], max_new_tokens=6, temperature=0.0).text for each in record["records"]]
    assert served == [each["output"] for each in record["records"]]
