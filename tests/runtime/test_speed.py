"""shears bench: what is measured, and how figures and ratios come from seconds."""

import json
import sys
from pathlib import Path

import pytest

from shears import export_adapter
from shears.checkpoints.packed.file import read_package
from shears.cli import main
from shears.config import BenchConfig
from shears.errors import InputError
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.speed import (
    TRANSFORMERS,
    TUNED,
    Contestant,
    Round,
    _figures,
    _measured,
    _ratios,
    _spread,
    bench,
    values_of,
    warn_if_slower,
)
from tests.runtime.generation.backends import lively
from tests.runtime.native.decoders import covered, extension_is_missing
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

QUICK = {"prompt_tokens": 20, "new_tokens": 4, "rounds": 2, "threads": 1}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    covered().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return export_adapter(str(folder / "model"), folder / "package", format="package", values="int8")


def test_a_package_is_measured_beside_the_dense_model(package: Path) -> None:
    data = bench(package, **QUICK)
    ours = [] if extension_is_missing() else ["dense, our kernels (bf16)", "dense, our kernels (int8)"]
    names = [row["name"] for row in data["contestants"]]
    assert names[1:] == [*ours, TRANSFORMERS, TUNED]
    assert names[0].startswith("package (int8, ")
    assert [row["over"] for row in data["ratios"]] == names[1:]
    for row in data["contestants"]:
        for key in ("decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds"):
            assert 0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"]
        assert row["memory_bytes"] > 0
    assert data["decode_tokens_per_second"] == data["contestants"][0]["decode_tokens_per_second"]
    assert values_of(read_package(package)) == "int8"


def test_a_package_that_is_slower_than_dense_is_named(caplog: pytest.LogCaptureFixture) -> None:
    ratios = [{"over": "dense, our kernels (int8)", "decode": {"median": 0.8}}]
    warn_if_slower(ratios, "dense, our kernels (bf16)")
    assert not caplog.records
    warn_if_slower(ratios, "dense, our kernels (int8)")
    assert "it reaches 0.80 of its speed" in caplog.text


def test_a_package_without_a_packed_linear_is_measured(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "model"))
    package = export_adapter(model, tmp_path / "package", format="package", values="fp32")
    assert values_of(read_package(package)) == "fp32"
    assert bench(package, **QUICK)["contestants"][0]["name"].startswith("package (fp32, ")


def test_figures_are_tokens_over_seconds() -> None:
    wanted = BenchConfig(prompt_tokens=100, new_tokens=11, rounds=3)
    rounds = [Round(2.0, 0.5, 4.0), Round(1.0, 0.2, 2.0), Round(4.0, 0.1, 5.0)]
    figures = _figures(Contestant("a", TransformersBackend(tiny_model())), rounds, wanted)
    assert figures["decode_tokens_per_second"] == {"median": 2.5, "min": 2.0, "max": 5.0}
    assert figures["prefill_tokens_per_second"] == {"median": 50.0, "min": 25.0, "max": 100.0}
    assert figures["time_to_first_token_seconds"] == {"median": 0.2, "min": 0.1, "max": 0.5}


def test_ratios_are_taken_round_by_round() -> None:
    ours = [Round(1.0, 1.0, 1.0), Round(2.0, 1.0, 10.0), Round(4.0, 1.0, 1.0)]
    theirs = [Round(2.0, 3.0, 2.0), Round(2.0, 3.0, 40.0), Round(2.0, 3.0, 3.0)]
    ratios = _ratios(ours, theirs, "other")
    assert ratios["decode"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert ratios["prefill"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert ratios["first_token"] == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert _spread([3.0, 1.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_every_round_measures_everyone_on_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, list[int]] = {}
    found = []
    for name in ("a", "b"):
        backend = TransformersBackend(lively(), max_sequences=1)
        prefill = backend.prefill

        def noted(sequence: int, tokens: list[int], name: str = name, prefill: object = prefill) -> object:
            read.setdefault(name, []).extend(tokens)
            return prefill(sequence, tokens)  # type: ignore[operator]

        monkeypatch.setattr(backend, "prefill", noted)
        found.append(Contestant(name, backend, tuned=name == "b"))
    rounds = _measured(found, BenchConfig(prompt_tokens=9, new_tokens=3, rounds=2))
    assert {name: len(taken) for name, taken in rounds.items()} == {"a": 2, "b": 2}
    assert read["a"] == read["b"]
    assert len(read["a"]) == 3 * (9 + 64)


def test_figures_fit_a_narrow_terminal_and_are_data_on_demand(
    package: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in QUICK.items()]
    output = []
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["shears", "bench", str(package), *flags, *more])
        with pytest.raises(SystemExit):
            main()
        output.append(capfd.readouterr().out)
    table = [line for line in output[0].splitlines() if line[:1] in "│┃┏└ "]
    assert max(map(len, table)) <= 80
    assert "oneDNN" in output[0]
    assert json.loads(output[1])["rounds"] == 2


def test_what_cannot_be_measured_is_refused(package: Path) -> None:
    with pytest.raises(InputError, match="bench needs a package, .* is another model"):
        bench(package.parent / "model")
    with pytest.raises(InputError, match="threads must be 1 to 1024, got 100000"):
        bench(package, threads=100_000)
    with pytest.raises(InputError, match="must be at most the model's 256, got 300"):
        bench(package, prompt_tokens=300)
    with pytest.raises(InputError, match="must be at most the model's 256, got 264"):
        bench(package, prompt_tokens=20, new_tokens=200)
