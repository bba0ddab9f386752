"""The table of defaults says what the code does, and its figures stand in the files that it names."""

import re
from pathlib import Path
from typing import Any

import pytest

from shears.config import (
    GenerateConfig,
    HealConfig,
    SearchConfig,
    SparsifyConfig,
    TrainConfig,
)
from shears.config.fields import StageConfig
from shears.runs.compress.effort import SCALES
from shears.runs.compress.recipes import BEST_METHOD

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "defaults.md"
VERBS: dict[str, type[StageConfig]] = {
    "sparsify": SparsifyConfig, "heal": HealConfig, "train": TrainConfig, "search": SearchConfig,
    "generate": GenerateConfig,
}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])\d*\.?\d+(?:e-?\d+)?(?![\w])")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("|") and not line.startswith(("| verb", "| ---"))
]


def default_of(setting: str, given: str) -> Any:
    """Return the default of a verb's field, under what the table says is given."""
    verb, field = setting.split()
    if verb == "compress":
        return {"method": BEST_METHOD, "epochs": SCALES["usual"].epochs}[field]
    kind = VERBS[verb]
    weights = re.search(r"(\d+) M weights", given)
    if verb == "heal" and weights:
        return HealConfig(data="-").rate_for(int(weights[1]) * 10**6)
    if verb != "train":
        return getattr(SparsifyConfig(method="wanda") if given else kind.model_construct(), field)
    settings: Any = TrainConfig(
        data="-", ranks=(32, 16) if "several ranks" in given else TrainConfig.model_fields["ranks"].default,
        sparse_adapter="a mask" in given,
    )  # fmt: skip
    if rows := re.search(r"([\d,]+) rows", given):
        return settings.num_epochs(int(rows[1].replace(",", "")))
    if weights:
        return getattr(settings.for_base(int(weights[1]) * 10**6, 0.5, False), field)
    return getattr(settings.for_base(10**9, 0.5, True) if "a recovery" in given else settings, field)


@pytest.mark.parametrize(("setting", "given", "stated"), [row[:3] for row in ROWS], ids=str)
def test_a_default_of_the_table_is_that_of_the_code(setting: str, given: str, stated: str) -> None:
    value = default_of(setting, given)
    if isinstance(value, str):
        assert value == stated
    else:
        [value] = value if isinstance(value, tuple) else [value]
        assert float(value) == float(stated)


@pytest.mark.parametrize(("setting", "figure", "files"), [(row[0], *row[3:]) for row in ROWS], ids=str)
def test_the_figures_stand_in_the_file(setting: str, figure: str, files: str) -> None:
    """In a file of text as they are written; of lines of JSON a figure is the rounding of a number."""
    texts = [(ROOT / name).read_text() for name in files.split(", ")]
    known = {number for text in texts for number in NUMBER.findall(text)}
    numbers = [float(number) for name, text in zip(files.split(", "), texts, strict=True)
               for number in (NUMBER.findall(text) if name.endswith("jsonl") else ())]  # fmt: skip
    shown = NUMBER.findall(figure)
    assert shown, setting
    for text in shown:
        digits = len(text.partition(".")[2])
        assert text in known or any(round(number, digits) == float(text) for number in numbers), text


def test_the_index_leads_to_the_table() -> None:
    assert "(explanation/defaults.md)" in (ROOT / "docs" / "index.md").read_text()
