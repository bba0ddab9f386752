"""Every figure of the README and of the pages of results stands in a file of benchmarks/results/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = "".join(path.read_text() for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")))
FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")
RECORDED = set(FIGURE.findall(RESULTS))


def figures_of(page: str) -> set[str]:
    """Return the numbers with decimals of a page's tables and text, without links, code and the demo.

    The demo's table has a test of its own; numbers of papers are no figures.
    """
    text = re.sub(r"## The five-minute demo.*?(?=\n## )", "", page, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|```.*?```|arXiv \d+\.\d+|\bQwen[\d.]+|https?://\S+", "", text, flags=re.DOTALL)
    return set(FIGURE.findall(text))


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/reproduction.md"])
def test_every_figure_stands_in_a_results_file(page: str) -> None:
    figures = figures_of((ROOT / page).read_text())
    assert len(figures) > 10
    assert sorted(figures - RECORDED) == []


def test_a_made_up_figure_is_found() -> None:
    assert figures_of("MAWPS 98.76 % (97.1 to 99.2)\n") - RECORDED >= {"98.76"}
