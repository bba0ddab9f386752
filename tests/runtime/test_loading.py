"""An engine is loaded from a model's name."""

import json
import logging
from pathlib import Path

import pytest

from shears import export_adapter
from shears.errors import InputError
from shears.records.artifacts import COMPRESS, PACKAGE, RECIPE, write_json
from shears.runtime.loading import load
from tests.export.packages import unpack
from tests.runtime.native.decoders import covered, extension_is_missing, running_in
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def test_every_end_token_of_a_model_ends_a_text(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    first = load(str(folder)).generate("a", max_new_tokens=1).tokens[0]
    end = tiny_tokenizer().eos_token_id
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{end}, {first}]}}')
    assert load(str(folder)).generate("a", max_new_tokens=3).finish == "stop"


def test_the_folder_of_compress_or_run_stands_for_its_package(tmp_path: Path) -> None:
    package = packed(tmp_path)
    expected = load(package).generate("a", max_new_tokens=3).text
    write_json(tmp_path / COMPRESS, {"chosen": "s50", "measured": [{"name": "s50", "package": "package"}]})
    assert load(tmp_path).generate("a", max_new_tokens=3).text == expected
    write_json(tmp_path / COMPRESS, {"chosen": "s50"})
    with pytest.raises(InputError, match=r"compress.json cannot be read: it lacks 'measured'"):
        load(tmp_path)
    (tmp_path / COMPRESS).rename(tmp_path / RECIPE)
    assert load(tmp_path).generate("a", max_new_tokens=3).text == expected


def packed(folder: Path, name: str = "llama, tied head") -> Path:
    """Save a model, and a package of it; return the package."""
    model = covered(name) if name.startswith("llama") else tiny_model(name)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return export_adapter(str(folder / "model"), folder / "package", format="package", dtype="fp32")


def test_a_package_that_the_native_decoder_does_not_cover_runs_in_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = packed(tmp_path, "gpt2")
    with caplog.at_level(logging.INFO):
        assert load(package).backend.describe()["name"] == "transformers"
    reason = "needs the C++ kernels" if extension_is_missing() else "not gpt2"
    assert any(
        line.startswith("using the transformers backend because ") and reason in line for line in caplog.messages
    )


@pytest.mark.parametrize("backend", ["auto", "transformers"])
def test_a_package_whose_record_has_no_fingerprint_is_verified(tmp_path: Path, backend: str) -> None:
    package = packed(tmp_path)
    record = json.loads((package / PACKAGE).read_text())
    del record["fingerprint"]
    (package / PACKAGE).write_text(json.dumps(record))
    with running_in(backend):
        load(package)
    file = package / "package.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with running_in(backend), pytest.raises(InputError, match="cannot be read"):
        load(package)
    with pytest.raises(InputError, match="cannot be read"):
        unpack(package, tmp_path / "unpacked")
