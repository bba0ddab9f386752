"""The questions of MAWPS that results are counted on: those that no training example asks.

    python -m benchmarks.held_out --data FOLDER      # writes results/mawps-seen.json again

Results up to 2026-11-26 are of 463 questions, the test file and what was then the validation split. 38 of the latter
stand in the training file, in other spacing or twice in the source. Their answers are left out when tables are made;
the splits leave them out from then on, which gives the same 425 in the same order. The test file has none of them.
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
    """Return a line of results whose bits are of the questions (the `first` so many) not in the training file."""
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
    found = json.loads(file.read_text())
    return found["questions"], frozenset(found["seen"])


def seen_in_training(source: Path) -> dict[str, Any]:
    """Return how many questions the results are of, and the numbers of those that training has."""
    with TemporaryDirectory() as folder:
        paths = write_splits(source, Path(folder), keep_seen=True)
        rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    known = {question_key(row["prompt"]) for row in rows["train"]}
    asked = [question_key(row["prompt"]) for row in [*rows["test"], *rows["validation"]]]
    return {"questions": len(asked), "seen": [number for number, key in enumerate(asked) if key in known]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mawps/ in LLM-Adapters' form")
    SEEN.write_text(json.dumps(seen_in_training(parser.parse_args().data / "mawps")) + "\n")
