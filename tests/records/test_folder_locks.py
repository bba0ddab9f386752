"""A folder belongs to one process at a time, from its first file until it has its name."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shears.errors import InputError
from shears.records import artifacts, folders
from shears.records.folders import run_lock, working_folder
from tests.records.test_artifacts import CONFIG, finish

WORKER = """
import os, sys, time
from pathlib import Path
from shears.config import SparsifyConfig
from shears.records.folders import working_folder
class Asked(SparsifyConfig):
    pass
with working_folder(Path(sys.argv[1]), {"sparsity": 0.5, "seed": 0}, resume=True, kind=Asked) as work:
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
            for resume in (True, False, None):
                with pytest.raises(InputError, match="only one process may work on"):
                    finish(tmp_path / "out", resume)
            assert (tmp_path / "out.partial" / "half.bin").exists()
        finally:
            process.send_signal(signal.SIGKILL)
    assert finish(tmp_path / "out", resume=True) == ["half.bin"]


@pytest.mark.parametrize("resume", [True, False, None])
def test_a_second_process_is_refused_until_the_folder_is_renamed(
    resume: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To flush gigabytes takes long, and whoever came meanwhile once took the folder for abandoned."""
    sync, seen = artifacts.sync_path, list[str]()

    def look(path: Path) -> None:
        try:
            finish(tmp_path / "out", resume)
        except InputError as error:
            seen.append(str(error))
        sync(path)

    with working_folder(tmp_path / "out", CONFIG, resume=None) as work:
        (work / "mine").touch()
        monkeypatch.setattr(artifacts, "sync_path", look)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(seen) >= 4, "at every file that is flushed"


def test_a_folder_killed_while_it_is_flushed_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "sync_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path / "out")
    with pytest.raises(InputError, match="continue it with --resume"):
        finish(tmp_path / "out", resume=False)
    assert finish(tmp_path / "out", resume=True) == ["whole.bin"]


def test_a_run_is_locked_as_a_whole(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"), pytest.raises(InputError, match="only one process may work on"):  # noqa: SIM117
        with run_lock(tmp_path / "run"):
            pass
    with run_lock(tmp_path / "run"):
        pass
