"""The record of every export names the training data and the prompt template of its adapter."""

from pathlib import Path

import pytest
from transformers import GenerationConfig

from shears.data.forms import TrainedForm, trained_form
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.records.artifacts import (
    SEARCH_SPACE,
    read_json,
    read_record,
    write_json,
)
from tests.export.made import half_sparse, super_adapter
from tests.export.packages import package, unpack


def _made(folder: Path, masked: bool) -> tuple[Path, Path, Path]:
    """Return the training data, the base, and a super-adapter that names both."""
    data = folder / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    base = half_sparse(folder / "base")
    return data, base, super_adapter(folder / "super", base, masked, data)


@pytest.mark.parametrize("there", [True, False])
def test_changed_training_data_are_refused_as_calibration_text(there: bool, tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    record = read_record(adapter, SEARCH_SPACE)
    write_json(adapter / SEARCH_SPACE, {**record, "data_sha256": source_fingerprint(str(data))})
    data.write_text(data.read_text() * 2) if there else data.unlink()
    with pytest.raises(InputError, match=r"its training data .* are missing or have changed; add --calibration"):
        export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    assert sorted(path.name for path in tmp_path.glob("merged*")) == []


@pytest.mark.parametrize("masked", [False, True])
def test_every_export_carries_the_form_of_the_training_and_answers_greedily(masked: bool, tmp_path: Path) -> None:
    _, base, adapter = _made(tmp_path, masked)
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": 256}
    write_json(base / "generation_config.json", sampling)
    form = TrainedForm("chat", "chat", "Be brief.")
    write_json(adapter / SEARCH_SPACE, {**read_json(adapter / SEARCH_SPACE), **form.as_record()})
    packed = package(adapter, tmp_path / "package")
    parts = unpack(packed, tmp_path / "parts")
    merged = export_adapter(adapter, tmp_path / "merged", format="merged")
    again = package(merged, tmp_path / "again")
    peft = export_adapter(adapter, tmp_path / "peft", format="peft")
    for folder in (packed, merged, again, peft, parts if masked else parts / "adapter"):
        assert trained_form(folder) == form
    for folder in (packed, merged, again):
        settings = GenerationConfig.from_pretrained(folder)
        assert not settings.do_sample
        assert (settings.temperature, settings.repetition_penalty) in ((None, None), (1.0, 1.0))
        assert settings.eos_token_id == 256
