"""Rows of a folder that `datasets.Dataset.save_to_disk` (or `DatasetDict.save_to_disk`) wrote."""

from pathlib import Path

import datasets

from shears.data.rows import HUB_ERRORS, Row
from shears.errors import InputError, first_line
from shears.records.paths import expanded

MARKERS = ("state.json", "dataset_dict.json")  # of one set; of a set a split


def is_saved(source: str) -> bool:
    """Tell whether a source, `:split` behind it or not, is such a folder."""
    return any((_parts(source)[0] / marker).is_file() for marker in MARKERS)


def saved_rows(source: str, split: str = "train") -> list[Row]:
    """Return the rows of FOLDER or FOLDER:SPLIT; InputError for a split that is not there or a torn folder."""
    folder, asked = _parts(source)
    try:
        table = datasets.load_from_disk(folder)
    except (*HUB_ERRORS, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} must be a whole folder of save_to_disk with rows, got {first_line(error)}"
        ) from None
    if isinstance(table, datasets.Dataset):
        if asked:
            raise InputError(f"{folder} holds one set without splits, got the split {asked!r}; leave it out")
    elif (asked or split) not in table:
        known = ", ".join(table)
        raise InputError(f"the split of {folder} must be one of {known}, got {asked or split!r}; put it behind a colon")
    else:
        table = table[asked or split]
    rows: list[Row] = table.to_list()
    if not rows:
        raise InputError(f"{source} must hold at least one row, got none")
    return rows


def saved_files(source: str, split: str = "train") -> list[Path]:
    """Return the files that hold the rows which `saved_rows` returns, in order; none where there is no such folder."""
    if not is_saved(source):
        return []
    folder, asked = _parts(source)
    if not (folder / MARKERS[0]).is_file():
        folder /= asked or split
    return sorted(path for path in folder.glob("*.arrow") if not path.name.startswith("cache-"))  # of map and filter


def _parts(source: str) -> tuple[Path, str]:
    """Return the folder and the split asked for, empty for none."""
    whole = expanded(source)
    name, colon, split = source.rpartition(":")
    return (expanded(name), split) if colon and not whole.exists() else (whole, "")
