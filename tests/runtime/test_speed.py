"""shears bench: what is measured, and how figures and ratios come from seconds."""

import json
from pathlib import Path

import pytest

from shears import export_adapter
from shears.config import BenchConfig
from shears.errors import InputError
from shears.runtime.speed import TRANSFORMERS, Round, _figures, _ratios, bench
from shears.runtime.transformers_backend import TransformersBackend
from tests.conftest import Call
from tests.runtime.native.decoders import covered, extension_is_missing
from tests.tiny import tiny_model, tiny_tokenizer

QUICK = {"prompt_tokens": 20, "new_tokens": 4, "rounds": 2, "threads": 1}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    covered().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return export_adapter(str(folder / "model"), folder / "package", format="package", dtype="int8")


def test_a_package_is_measured_beside_the_dense_model(package: Path, call: Call) -> None:
    data = bench(package, **QUICK)
    ours = [] if extension_is_missing() else ["dense, our kernels (bf16)", "dense, our kernels (int8)"]
    names = [row["name"] for row in data["contestants"]]
    assert names[1:] == [*ours, TRANSFORMERS]
    assert names[0].startswith("package (int8, ")
    assert [row["over"] for row in data["ratios"]] == names[1:]
    for row in data["contestants"]:
        for key in ("decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds"):
            assert 0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"]
        assert row["memory_bytes"] > 0
    assert data["decode_tokens_per_second"] == data["contestants"][0]["decode_tokens_per_second"]
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in QUICK.items()]
    _, printed, _ = call("bench", package, *flags)
    table = [line for line in printed.splitlines() if line[:1] in "│┃┏└ "]
    assert max(map(len, table)) <= 80
    assert json.loads(call("bench", package, *flags, "--json")[1])["rounds"] == 2


def test_figures_are_tokens_over_seconds_and_ratios_are_taken_round_by_round() -> None:
    wanted = BenchConfig(prompt_tokens=100, new_tokens=11, rounds=3)
    rounds = [Round(2.0, 0.5, 4.0), Round(1.0, 0.2, 2.0), Round(4.0, 0.1, 5.0)]
    figures = _figures("a", TransformersBackend(tiny_model()), rounds, wanted)
    assert figures["decode_tokens_per_second"] == {"median": 2.5, "min": 2.0, "max": 5.0}
    assert figures["prefill_tokens_per_second"] == {"median": 50.0, "min": 25.0, "max": 100.0}
    assert figures["time_to_first_token_seconds"] == {"median": 0.2, "min": 0.1, "max": 0.5}
    ours = [Round(1.0, 1.0, 1.0), Round(2.0, 1.0, 10.0), Round(4.0, 1.0, 1.0)]
    theirs = [Round(2.0, 3.0, 2.0), Round(2.0, 3.0, 40.0), Round(2.0, 3.0, 3.0)]
    ratios = _ratios(ours, theirs, "other")
    assert ratios["decode"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert ratios["prefill"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert ratios["first_token"] == {"median": 3.0, "min": 3.0, "max": 3.0}


def test_what_cannot_be_measured_is_refused(package: Path) -> None:
    with pytest.raises(InputError, match="bench needs a package, .* is none"):
        bench(package.parent / "model")
    with pytest.raises(InputError, match="must be at most the model's 256, got 300"):
        bench(package, prompt_tokens=300)
