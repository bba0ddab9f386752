"""The official and the strict rule compared on the teacher's responses in LLM-Adapters' test files.

    python -m benchmarks.readings --data FOLDER

FOLDER holds AQuA/test.json, SVAMP/test.json and gsm8k/test.json. No model is run: the responses are those of the column
`output`, written by a large model and not always right. Both rules read the same texts.
"""

import argparse
import json
from pathlib import Path

from shears.config.evaluate import ANSWER_FORMS
from shears.evaluation.statistics import mcnemar, wilson_interval
from shears.evaluation.tasks.answers import is_right, read_answers, response_of

FILES = {"aqua": "AQuA", "svamp": "SVAMP", "gsm8k": "gsm8k"}


def readings(task: str, file: Path) -> tuple[list[bool], list[bool], int]:
    """Return which responses are right by the official and by the strict rule, and how many have no strict answer."""
    form = ANSWER_FORMS[task]
    official: list[bool] = []
    strict: list[bool] = []
    unread = 0
    for row in json.loads(file.read_text(encoding="utf-8")):
        right = row["answer"] if form == "letter" else float(row["answer"])
        reading = read_answers(form, response_of(row["output"]))
        official.append(is_right(reading.official, right))
        strict.append(is_right(reading.strict, right))
        unread += reading.strict is None
    return official, strict, unread


def _share(bits: list[bool]) -> str:
    low, high = wilson_interval(sum(bits), len(bits))
    return f"{sum(bits) / len(bits):.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    """Print a table of both readings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of LLM-Adapters' test files")
    folder = parser.parse_args().data
    print("| task | n | official | strict | without a strict answer | p |")
    print("| --- | --- | --- | --- | --- | --- |")
    for task, name in FILES.items():
        official, strict, unread = readings(task, folder / name / "test.json")
        p = mcnemar(official, strict).p_mid
        print(f"| {task} | {len(official)} | {_share(official)} | {_share(strict)} | {unread} | {p:.2g} |")


if __name__ == "__main__":
    main()
