"""A name for what a stage was fed, independent of the path it came from."""

import hashlib
from collections.abc import Sequence

from shears.data.examples import Tokenized
from shears.data.saved import saved_files
from shears.records.paths import expanded, file_fingerprint


def source_fingerprint(source: str) -> str | None:
    """Return sha256 of a local file of examples, or over the data of a folder of `save_to_disk` (or of its split).

    None for hub data sets, embedded data and what is not there.
    """
    path = expanded(source)
    if path.is_file():
        return file_fingerprint(path)
    files = saved_files(source)
    return file_fingerprint(*files) if files else None


def rows_fingerprint(rows: Sequence[Tokenized]) -> str:
    """Return sha256 over the token ids and labels of all rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((list(row.input_ids), list(row.labels))).encode())
    return digest.hexdigest()
