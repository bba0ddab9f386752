"""Folders appear whole or not at all, know what they were made from, and belong to one process at a time."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shears.config import SparsifyConfig
from shears.config.fields import StageConfig
from shears.errors import InputError
from shears.records.artifacts import as_data, read_json, refuse_changes, write_json
from shears.records.folders import partial_folder, working_folder

CONFIG = {"sparsity": 0.5, "seed": 0}


class Asked(SparsifyConfig):
    """The configuration of any stage: of a pruning itself not every file is work."""


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def finish(
    output: Path,
    resume: bool | None = None,
    config: dict[str, Any] | None = None,
    kind: type[StageConfig] | None = Asked,
) -> list[str]:
    """Run a stage to its end; return the files it found at its start."""
    with working_folder(output, config or CONFIG, resume=resume, kind=kind) as work:
        found = sorted(path.name for path in work.iterdir() if not path.name.startswith("."))
        (work / "whole.bin").write_bytes(b"whole")
    return found


def interrupt(output: Path) -> None:
    """Run a stage that fails half way."""
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(output, RuntimeError("half way"))


def _fail_half_way(output: Path, error: Exception, resume: bool | None = None) -> None:
    with working_folder(output, CONFIG, resume=resume, kind=Asked) as work:
        (work / "half.bin").write_bytes(b"half")
        raise error


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_what_is_written_is_read_back(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_content_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"new": object()})
    for number in (math.nan, math.inf):  # Python's own spelling of them is no JSON
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x.json", {"new": number})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "rename")])
def test_a_full_disk_leaves_the_old_file(
    owner: object, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "x.json", {"old": 1})
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, full)
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / "x.json", {"new": 2})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"], "a full disk is not filled further"
    write_json(tmp_path / "x.json", {"new": 2})
    assert read_json(tmp_path / "x.json") == {"new": 2}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_device_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    (tmp_path / ".x.json.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "x.json", {"new": 2})
    assert read_json(tmp_path / "x.json") == {"old": 1}


def test_a_missing_and_a_torn_file_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must exist; it does not"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"torn": ')
    with pytest.raises(InputError, match="must be a JSON file"):
        read_json(tmp_path / "x.json")
    for text in ("[" * 100_000, f'{{"a": {"9" * 5000}}}'):  # beyond Python's depth, and its digits of a number
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match="must be a JSON file"):
            read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="must be a JSON file"):
        read_json(tmp_path / "x.json")


def test_a_finished_stage_leaves_its_files_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["whole.bin"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_crash_leaves_only_the_partial_folder(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert (tmp_path / "out.partial" / "half.bin").read_bytes() == b"half"


@pytest.mark.parametrize("resume", [True, False, None])
def test_a_refusal_before_any_work_leaves_no_folder(resume: bool | None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such ranks"), working_folder(tmp_path / "out", CONFIG, resume=resume):
        raise InputError("no such ranks")
    assert not list(tmp_path.iterdir())
    assert finish(tmp_path / "out", resume=False) == []


def test_a_refusal_after_some_work_keeps_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nan"):
        _fail_half_way(tmp_path / "out", InputError("the loss is nan"), resume=False)
    assert finish(tmp_path / "out", resume=True) == ["half.bin"]


@pytest.mark.parametrize(("resume", "found"), [(True, ["half.bin"]), (None, [])])
def test_resume_true_continues_and_none_starts_anew(resume: bool | None, found: list[str], tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    (tmp_path / "out.partial" / "checkpoints").mkdir()
    if resume:
        found = ["checkpoints", *found]
    assert finish(tmp_path / "out", resume) == found
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*found, "whole.bin"])


@pytest.mark.parametrize("resume", [True, False, None])
def test_without_an_interrupted_run_every_resume_starts(resume: bool | None, tmp_path: Path) -> None:
    assert finish(tmp_path / "out", resume) == []


def interrupted_with(output: Path, recorded: dict[str, Any]) -> None:
    """Leave an interrupted stage of another version, whose record holds these keys."""
    interrupt(output)
    write_json(partial_folder(output) / ".asked.json", recorded)


@given(unknown=st.dictionaries(st.text(min_size=1).map("{}?".format), json_values, max_size=3), lacking=st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_of_another_version_is_compared_on_the_keys_of_this_one(
    unknown: dict[str, Any], lacking: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Unknown keys are ignored; a key that the record lacks counts as its default, and other values are refused."""
    output = tmp_path_factory.mktemp("run") / "out"
    config = as_data(SparsifyConfig(seed=3))
    optional = sorted(config.keys() - {"seed"})
    left_out = set(lacking.draw(st.lists(st.sampled_from(optional))))
    interrupted_with(output, {**unknown, **{key: value for key, value in config.items() if key not in left_out}})
    for key, value in {"seed": 4, "sparsity": 0.25}.items():
        with pytest.raises(InputError, match=f"{key} was .* and is now {value}"):
            finish(output, True, {**config, key: value})
    assert finish(output, True, config) == ["half.bin"]


@pytest.mark.parametrize("key", ["base_fingerprint", "data_sha256"])
def test_a_fingerprint_that_one_side_lacks_is_a_difference(key: str, tmp_path: Path) -> None:
    interrupted_with(tmp_path / "out", {**CONFIG, key: "abc"})
    with pytest.raises(InputError, match=f"{key} was 'abc' and is now None"):
        finish(tmp_path / "out", True)
    interrupted_with(tmp_path / "other", CONFIG)
    with pytest.raises(InputError, match=f"{key} was None and is now 'abc'"):
        finish(tmp_path / "other", True, {**CONFIG, key: "abc"})


def test_resume_false_refuses_and_keeps_an_interrupted_run(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    with pytest.raises(InputError, match="continue it with --resume, or delete it"):
        finish(tmp_path / "out", resume=False)
    assert finish(tmp_path / "out", resume=True) == ["half.bin"]


def test_a_changed_configuration_is_refused_with_every_key_named(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    with pytest.raises(InputError) as error:
        finish(tmp_path / "out", True, {"sparsity": 0.6, "method": "wanda", "seed": 0})
    assert "method was 'admm' and is now 'wanda'; sparsity was 0.5 and is now 0.6" in str(error.value)
    assert "seed" not in str(error.value)
    assert finish(tmp_path / "out", True) == ["half.bin"], "what was refused did no harm"


def test_a_changed_configuration_may_start_anew(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    assert finish(tmp_path / "out", None, {"sparsity": 0.6}) == []


def test_a_configuration_is_equal_after_json(tmp_path: Path) -> None:
    config = {"model": "m", **as_data(SparsifyConfig(skip=("q_proj", "v_proj")))}
    refuse_changes(tmp_path, json.loads(json.dumps(config)), config)


def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    for resume in (True, False, None):
        with pytest.raises(InputError, match="must not exist yet"):
            finish(tmp_path / "out", resume)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def stage_overtaken_by_another() -> None:
        with working_folder(tmp_path / "out", CONFIG, resume=None):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").touch()

    with pytest.raises(OSError, match="not empty"):
        stage_overtaken_by_another()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
