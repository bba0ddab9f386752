"""Folders appear whole or not at all, belong to one process at a time, and no other file is touched."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shears.errors import InputError
from shears.records import folders
from shears.records.folders import partial_folder, run_lock, working_folder

CONFIG = {"sparsity": 0.5, "seed": 0}
RESUMED = pytest.mark.parametrize("resumes", [True, False])


def finish(output: Path, resumes: bool = True, config: dict[str, Any] | None = None) -> list[str]:
    """Run a stage to its end; return the files it found at its start."""
    with working_folder(output, config or CONFIG, resumes=resumes) as work:
        found = sorted(path.name for path in work.iterdir() if not path.name.startswith("."))
        (work / "whole.bin").write_bytes(b"whole")
    return found


def fail(output: Path, error: BaseException, resumes: bool = True, file: str = "half.bin") -> None:
    """Run a stage that fails half way."""
    with pytest.raises(type(error)), working_folder(output, CONFIG, resumes=resumes) as work:  # noqa: PT012
        if file:
            (work / file).write_bytes(b"half")
        raise error


def test_a_finished_stage_leaves_its_files_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["whole.bin"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("killed"), KeyboardInterrupt(), OSError("full")])
def test_an_interrupted_stage_goes_on_with_what_it_left(error: BaseException, tmp_path: Path) -> None:
    fail(tmp_path / "out", error)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert finish(tmp_path / "out") == ["half.bin"]


def test_a_stage_that_cannot_resume_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path / "out", RuntimeError("killed"), resumes=False)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_cannot_resume_keeps_an_interrupted_training(tmp_path: Path) -> None:
    marker = tmp_path / "out.partial" / folders.CHECKPOINTS / "checkpoint-1" / folders.MARKER
    fail(tmp_path / "out", RuntimeError("killed"))
    marker.parent.mkdir(parents=True)
    marker.touch()
    with pytest.raises(InputError, match="holds an interrupted training; choose another output"):
        finish(tmp_path / "out", resumes=False)
    assert marker.exists()


def test_wrong_input_leaves_nothing_new_and_keeps_earlier_work(tmp_path: Path) -> None:
    fail(tmp_path / "out", InputError("no such ranks"))
    assert not list(tmp_path.iterdir())
    fail(tmp_path / "out", RuntimeError("killed"))
    fail(tmp_path / "out", InputError("the loss is nan"))
    assert finish(tmp_path / "out") == ["half.bin"]


def test_a_changed_configuration_is_refused_with_every_key_named(tmp_path: Path) -> None:
    fail(tmp_path / "out", RuntimeError("killed"))
    with pytest.raises(InputError) as error:
        finish(tmp_path / "out", True, {"sparsity": 0.6, "method": "wanda", "seed": 0})
    assert "method was the default and is now 'wanda'; sparsity was 0.5 and is now 0.6" in str(error.value)
    assert "seed" not in str(error.value)
    assert finish(tmp_path / "out") == ["half.bin"], "what was refused did no harm"


@RESUMED
def test_an_existing_output_is_refused_and_left_alone(resumes: bool, tmp_path: Path) -> None:
    finish(tmp_path / "out")
    with pytest.raises(InputError, match="must not exist yet"):
        finish(tmp_path / "out", resumes)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@RESUMED
def test_a_folder_that_no_stage_made_is_refused_and_not_emptied(resumes: bool, tmp_path: Path) -> None:
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.txt").write_text("years")
    (tmp_path / "link.partial").symlink_to(tmp_path / "mine.partial")
    for name in ("mine", "link"):
        with pytest.raises(InputError, match="must come from an interrupted run"):
            finish(tmp_path / name, resumes)
    assert (tmp_path / "mine.partial" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("name", ["out.partial", "/", "."])
def test_a_name_that_no_output_can_have_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.partial").mkdir()
    monkeypatch.chdir(tmp_path / "x.partial")
    with pytest.raises(InputError, match=r"a folder with a name that does not end in \.partial, got "):
        partial_folder(Path(name))


def test_the_current_folder_and_a_link_can_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    finish(Path())
    assert os.listdir(tmp_path / "here") == ["whole.bin"]
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large_disk" / "out")
    finish(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large_disk" / "out" / "whole.bin").is_file()


WORKER = """
import sys, time
from pathlib import Path
from shears.records.folders import working_folder
with working_folder(Path(sys.argv[1]), {"sparsity": 0.5, "seed": 0}) as work:
    (work / "half.bin").write_bytes(b"half")
    print("holding", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_its_work(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            for resumes in (True, False):
                with pytest.raises(InputError, match="only one process may work on"):
                    finish(tmp_path / "out", resumes)
            assert (tmp_path / "out.partial" / "half.bin").exists()
        finally:
            process.send_signal(signal.SIGKILL)
    assert finish(tmp_path / "out") == ["half.bin"]


def test_a_folder_killed_while_it_is_flushed_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "sync_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path / "out")
    assert finish(tmp_path / "out") == ["whole.bin"]


def test_a_run_is_locked_as_a_whole(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"), pytest.raises(InputError, match="only one process may work on"):  # noqa: SIM117
        with run_lock(tmp_path / "run"):
            pass
    with run_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_umask_lets_them(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with working_folder(tmp_path / "out", {}, resumes=False) as work:
            (work / "deep").mkdir()
            save_file({"a": torch.zeros(2)}, work / "deep" / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "deep" / "model.safetensors").stat().st_mode) == mode
