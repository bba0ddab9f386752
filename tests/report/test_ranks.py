"""The Ranks section: the curve of accuracy over rank."""

from pathlib import Path
from typing import Any

from shears.report.words import count
from tests.report.made import Reader, page_of, records


def curve() -> dict[str, Any]:
    """Return the record of a super-adapter at three ranks."""
    gap = {"n": 200, "value": -0.05, "ci95": [-0.1, 0.01], "won": 4, "lost": 14, "p": 0.02, "p_holm": 0.04}
    points = [
        {"rank": rank, "parameters": 1000 * rank, "value": value, "n": 200, "ci95": [value - 0.1, value + 0.1],
         "details": {}, "difference": None if rank == 32 else gap}
        for rank, value in ((32, 0.5), (16, 0.45), (8, 0.4))
    ]  # fmt: skip
    return {"task": "number", "metric": "accuracy", "value": 0.5, "n": 200, "ci95": [0.4, 0.6], "records": [],
            "curve": {"aurac": 0.4583, "aurac_ci95": [0.4, 0.52], "points": points}}  # fmt: skip


def test_the_curve_is_drawn_with_its_area_and_its_table(tmp_path: Path) -> None:
    page = Reader(page_of(tmp_path, records() | {"evaluation/ranks.json": curve()}))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "(AURAC) is 45.8 % (40.0 % to 52.0 %)" in text
    assert "Accuracy over rank, from 40.0 % at the smallest rank to 50.0 % at the largest" in (
        str([each.get("aria-label") for each in page.named("svg")]).replace("\\xa0", " ")
    )
    dots = [each for each in page.named("circle") if each.get("r") == "4"]
    places = [(float(each["cx"] or 0), float(each["cy"] or 0)) for each in dots]
    assert len(places) == 3
    assert places == sorted(places, key=lambda place: (-place[0], place[1]))  # smaller to the left, worse below
    for cell in ("16", count(16_000).replace("\N{NO-BREAK SPACE}", " "), "45.0 %", "35.0 % to 55.0 %", "0.040"):
        assert cell in text


def test_a_run_without_the_curve_has_no_such_section(tmp_path: Path) -> None:
    page = Reader(page_of(tmp_path, records()))
    assert "AURAC" not in page.text
    assert "#ranks" not in {each.get("href") for each in page.named("a")}
