"""Figures of the Shears paper (arXiv 2404.10934) to print beside our tables: accuracies in percent."""

from collections.abc import Mapping
from typing import NamedTuple


class Paper(NamedTuple):
    """What the paper measured, and its figures by the name of our line."""

    measured: str
    figures: Mapping[str, str]

    def __str__(self) -> str:
        """Return the figures on one line."""
        return f"Paper, {self.measured}: " + "; ".join(f"{name} {figure}" for name, figure in self.figures.items())


LORA_MATH = Paper(
    "LLaMA-7B, mean of four math sets (of them MAWPS)",
    {"dense, LoRA": "46.9 (79.0)", "50 %, LoRA": "43.3", "50 %, NLS, heuristic": "45.3 (78.6)"},
)
LORA_CHOICES = Paper(
    "LLaMA-7B, mean of eight commonsense sets", {"dense, LoRA": "74.7", "50 %, NLS, heuristic": "72.5"}
)
SEARCH_MATH = Paper(
    "LLaMA-7B at 50 %, mean of four math sets",
    {"heuristic": "45.3", "hill climbing": "45.9", "RNSGA-II": "45.7", "smallest ranks": "43.5"},
)
SEARCH_CHOICES = Paper("LLaMA-7B at 50 %, mean of eight commonsense sets", {"heuristic": "72.5"})
SPARSITY_MATH = Paper(
    "MPT-7B, GSM8K",
    {"0 %, NLS": "36.1", "40 %, NLS": "35.7", "50 %, NLS": "33.4", "60 %, NLS": "30.4", "70 %, NLS": "22.8"},
)
SPARSITY_CHOICES = Paper(
    "LLaMA-7B, mean of eight commonsense sets", {"0 %, LoRA": "74.7", "40 %, NLS": "74.9", "50 %, NLS": "72.5"}
)
