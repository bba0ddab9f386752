"""A name for what a stage was fed, independent of the path it came from."""

import hashlib
from collections.abc import Sequence

from shears.data.examples import Tokenized


def rows_fingerprint(rows: Sequence[Tokenized]) -> str:
    """Return sha256 over the token ids and labels of all rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((list(row.input_ids), list(row.labels))).encode())
    return digest.hexdigest()
