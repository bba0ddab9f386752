"""How much each stage of a compression does: quick, usual or thorough.

The amounts follow docs/internals/log.md: ADMM's choice gets better up to 64 sequences; three epochs are ten
points above one on 1,700 rows; few rows need steps, not epochs; a teacher trained on the rows adds
a point; healing before a training on the same rows adds nothing.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from shears.config import TrainConfig
from shears.config.compress_options import EffortName

BATCH: int = TrainConfig.model_fields["batch_size"].default
FEWEST_STEPS = 10  # below this a training teaches nothing
LENGTH = 512  # tokens of a calibration sequence and of a held-out window, at most
FEWEST_SEQUENCES = 4  # of a text: a step of healing takes so many


class Amounts(NamedTuple):
    """What is there to be read: rows to train on, their mean tokens, tokens of the texts, questions."""

    rows: int
    row_tokens: float
    text_tokens: int
    held_out_tokens: int
    questions: int


@dataclass(frozen=True)
class Effort:
    """What the stages do. `heal` is in tokens, `steps` those of every training; 0: left out."""

    name: EffortName
    method: Literal["admm", "wanda"]
    num_samples: int
    sequence_length: int
    heal: int
    steps: int
    teaches: bool
    rival: bool


SCALES: dict[EffortName, tuple[int, ...]] = {
    "quick": (16, 1, 40, 120, 5, 0),
    "usual": (64, 3, 120, 600, 10, 100_000),
    "thorough": (128, 3, 200, 2000, 15, 500_000),
}
"""Sequences, epochs, the fewest and the most steps, the most epochs, and tokens to heal on."""


def efforts(amounts: Amounts, context: int | None = None) -> dict[EffortName, Effort]:
    """Return quick, usual and thorough for these rows or texts, in sequences that fit a model's context."""
    length = min(LENGTH, context or LENGTH, max(amounts.text_tokens // FEWEST_SEQUENCES, 2))
    epoch = -(-amounts.rows // BATCH)
    found = dict[EffortName, Effort]()
    for name, (samples, epochs, fewest, most, most_epochs, most_healed) in SCALES.items():
        steps = min(max(epochs * epoch, fewest), most_epochs * epoch, most)
        heal = max(min(most_healed, 4 * amounts.text_tokens), FEWEST_SEQUENCES * length)  # more epochs give little
        found[name] = Effort(
            name=name, method="admm", num_samples=samples, sequence_length=length,
            heal=heal if most_healed and not amounts.rows else 0,
            steps=max(steps, FEWEST_STEPS) if amounts.rows else 0,
            teaches=name == "thorough" and amounts.rows > 0, rival=amounts.questions > 0,
        )  # fmt: skip
    return found
