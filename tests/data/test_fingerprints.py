"""What a stage was fed has a name that changes with its content, and with nothing else."""

import hashlib
import shutil
from pathlib import Path

import datasets
import pytest

from shears.data.fingerprints import source_fingerprint


def _rows(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"text": text} for text in texts])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of save_to_disk: two splits, one of them in two files."""
    splits = datasets.DatasetDict({"train": _rows("a", "b"), "test": _rows("c")})
    splits.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    return tmp_path / "saved"


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    assert source_fingerprint(str(tmp_path / "rows.jsonl")) == hashlib.sha256(b"{}\n").hexdigest()


def test_a_saved_folder_has_the_hash_of_the_files_of_its_split(saved: Path) -> None:
    files = sorted((saved / "train").glob("data-*.arrow"))
    train = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert len(files) == 2
    assert source_fingerprint(str(saved)) == source_fingerprint(f"{saved}:train") == train
    assert source_fingerprint(f"{saved}:test") not in {None, train}
    assert source_fingerprint(str(saved / "train")) == train


def test_a_saved_folder_keeps_its_name_elsewhere_and_beside_a_cache(saved: Path, tmp_path: Path) -> None:
    before = source_fingerprint(str(saved))
    moved = Path(shutil.move(saved, tmp_path / "elsewhere"))
    (moved / "train" / "cache-0123.arrow").write_bytes(b"what map() left")
    assert source_fingerprint(str(moved)) == before


def test_other_rows_in_the_same_place_have_another_name(tmp_path: Path) -> None:
    _rows("a").save_to_disk(tmp_path / "one")
    before = source_fingerprint(str(tmp_path / "one"))
    shutil.rmtree(tmp_path / "one")
    _rows("b").save_to_disk(tmp_path / "one")
    assert source_fingerprint(str(tmp_path / "one")) not in {None, before}


@pytest.mark.parametrize("source", ["name/of-the-hub", "name/of-the-hub:train", "arithmetic", ":train", "."])
def test_what_is_not_here_has_no_hash(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stray.arrow").write_bytes(b"not of a saved folder")
    monkeypatch.chdir(tmp_path)
    assert source_fingerprint(source) is None
