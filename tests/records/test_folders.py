"""A working folder takes a name beside the output; a folder of that name that no stage made is not touched."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from shears.config import SearchConfig, SparsifyConfig
from shears.errors import InputError
from shears.records.folders import CHECKPOINTS, MARKER, has_work, partial_folder, refuse_taken, working_folder
from tests.records.test_artifacts import CONFIG, finish, interrupt

ALWAYS = pytest.mark.parametrize("resume", [True, False, None])


@ALWAYS
def test_a_folder_that_no_stage_made_is_refused_and_not_emptied(resume: bool | None, tmp_path: Path) -> None:
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="must not exist or come from an interrupted run"):
        finish(tmp_path / "mine", resume)
    assert (tmp_path / "mine.partial" / "thesis.txt").read_text() == "years"


@ALWAYS
def test_a_link_is_not_followed_and_its_target_not_emptied(resume: bool | None, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="must not exist or come from an interrupted run"):
        finish(tmp_path / "out", resume)
    assert (tmp_path / "precious").is_dir()


def test_an_interrupted_run_of_another_verb_is_refused_and_kept(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    for resume in (True, None):
        with pytest.raises(InputError, match="an interrupted run of another verb"):
            finish(tmp_path / "out", resume, {"data": "x", "seed": 0}, kind=SearchConfig)
    assert (tmp_path / "out.partial" / "half.bin").exists()


@pytest.mark.parametrize(
    ("file", "is_work"),
    [
        ("model.safetensors", False),
        ("config.json", False),
        (".activations-x/0.safetensors", False),
        (f"{CHECKPOINTS}/3/hidden/0.safetensors", False),
        (f"{CHECKPOINTS}/3/{MARKER}", True),
        ("sparsity.json", True),
    ],
)
def test_of_a_pruning_the_checkpoint_and_the_record_are_work(file: str, is_work: bool, tmp_path: Path) -> None:
    config = {"kind": SparsifyConfig.__name__, "sparsity": 0.5}
    for path, text in ((".asked.json", json.dumps(config)), (file, "x")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert has_work(tmp_path) == is_work


def test_a_kill_before_anything_was_written_is_no_interrupted_run(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    for name in (".lock", "..asked.json.tmp"):
        (tmp_path / "out.partial" / name).touch()
    assert finish(tmp_path / "out", resume=False) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.bin"]


@pytest.mark.parametrize("name", ["out.partial", "/", "."])
def test_a_name_that_no_output_can_have_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.partial").mkdir()
    monkeypatch.chdir(tmp_path / "x.partial")
    with pytest.raises(InputError, match=r"a folder with a name that does not end in \.partial, got "):
        partial_folder(Path(name))


def test_the_current_folder_can_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with working_folder(Path(), CONFIG, resume=False) as work:
        (work / "whole.bin").touch()
    assert os.listdir(tmp_path / "here") == ["whole.bin"]


@pytest.mark.parametrize("is_there", [True, False])
def test_an_output_that_is_a_link_means_where_it_points(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    if is_there:
        (tmp_path / "large_disk" / "out").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large_disk" / "out")
    finish(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "large_disk" / "out").iterdir()] == ["whole.bin"]
    with pytest.raises(InputError, match="must not exist yet"):
        finish(tmp_path / "out")


def test_the_error_for_the_current_folder_says_to_name_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").touch()
    monkeypatch.chdir(tmp_path / "here")
    with (
        pytest.raises(InputError, match=r"must not exist yet, got \S+here; name a new one$"),
        working_folder(Path(), CONFIG, resume=False),
    ):
        pass


@ALWAYS
@pytest.mark.parametrize("target", ["out", "out/inside", "other"])
def test_a_link_that_leads_back_to_itself_is_refused_before_any_work(
    target: str, resume: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "out")
    (tmp_path / "out").symlink_to(tmp_path / target)
    for output in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(InputError, match="the output must be a new folder, got .*, a link to itself; delete it"):
            finish(output, resume)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other"}


WORTHLESS = ["training_log.jsonl", "written.jsonl", f"{CHECKPOINTS}/checkpoint-2/optimizer.pt"]


def fail(output: Path, name: str, error: Exception) -> None:
    """Run a stage that writes a file into its working folder, then fails."""
    with suppress(type(error)), working_folder(output, CONFIG, resume=False, kind=SearchConfig) as work:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("" if name == "written.jsonl" else "x")
        raise error


@pytest.mark.parametrize("name", WORTHLESS)
def test_work_that_failed_before_anything_could_be_resumed_leaves_nothing(name: str, tmp_path: Path) -> None:
    fail(tmp_path / "out", name, InputError("unusable"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [True, False, None])
@pytest.mark.parametrize("name", WORTHLESS)
def test_a_kill_before_anything_could_be_resumed_blocks_no_other_run(
    name: str, resume: bool | None, tmp_path: Path
) -> None:
    fail(tmp_path / "out", name, RuntimeError("killed"))
    refuse_taken(tmp_path / "out", resume)
    assert finish(tmp_path / "out", resume, {"data": "of another verb and settings"}) == []


@pytest.mark.parametrize("name", [f"{CHECKPOINTS}/checkpoint-2/{MARKER}", "study.db"])
def test_work_that_can_be_resumed_stays_and_is_refused_without_resume(name: str, tmp_path: Path) -> None:
    fail(tmp_path / "out", name, InputError("unusable"))
    assert (tmp_path / "out.partial" / name).read_text() == "x"
    with pytest.raises(InputError, match="holds an interrupted run; continue it with --resume, or delete it"):
        refuse_taken(tmp_path / "out", resume=False)
    refuse_taken(tmp_path / "out", resume=True)


def test_an_output_under_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"must lie in a folder, got \S+/file/deep/out, and \S+/file is none"):
        refuse_taken(tmp_path / "file" / "deep" / "out")


def test_an_output_where_nothing_can_be_written_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"must lie in a folder that can be written, got /proc"):
        refuse_taken(Path("/proc/out"))
