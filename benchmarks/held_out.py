"""The MAWPS questions that results count: those that are not in the training file.

    python -m benchmarks.held_out --data FOLDER      # writes results/mawps-seen.json again

Results up to 2026-11-26 have 463 questions: the test file and the validation split of that time. 38 questions of that
split are also in the training file, in other spacing or because the source has them twice. Tables leave out their
answers; later splits leave out the questions, which gives the same 425 in the same order. None is in the test file.
"""

import argparse
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.mawps_data import question_key, write_splits

SEEN = Path(__file__).parent / "results" / "mawps-seen.json"


def unseen(row: Mapping[str, Any], first: int | None = None) -> dict[str, Any]:
    """Return a line of results with only the bits of questions that are not in the training file (the `first` many)."""
    if row["task"] != "mawps":
        return dict(row)
    questions, left_out = _seen(SEEN)

    def cleaned(bits: str) -> str:
        whole = len(bits) == questions
        kept = "".join(bit for number, bit in enumerate(bits) if number not in left_out) if whole else bits
        return kept[:first]

    return {**row, "right": {ranks: cleaned(bits) for ranks, bits in row["right"].items()}}


@cache
def _seen(file: Path) -> tuple[int, frozenset[int]]:
    record = json.loads(file.read_text())
    return record["questions"], frozenset(record["seen"])


def seen_in_training(source: Path) -> dict[str, Any]:
    """Return the number of questions in the results, and the numbers of those in the training file."""
    with TemporaryDirectory() as folder:
        paths = write_splits(source, Path(folder), keep_seen=True)
        rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    known = {question_key(row["prompt"]) for row in rows["train"]}
    held_out = [question_key(row["prompt"]) for row in [*rows["test"], *rows["validation"]]]
    return {"questions": len(held_out), "seen": [number for number, key in enumerate(held_out) if key in known]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mawps/ in LLM-Adapters' form")
    SEEN.write_text(json.dumps(seen_in_training(parser.parse_args().data / "mawps")) + "\n")
