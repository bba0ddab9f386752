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
    """What the stages do. `heal` is in tokens, `steps` those of every training; 0: left out.

    With `teaches` the dense model is trained on the rows first, and teaches. With `rival` dense int4
    is trained alike.
    """

    name: EffortName
    method: Literal["admm", "wanda"]
    num_samples: int
    sequence_length: int
    heal: int
    steps: int
    teaches: bool
    rival: bool


class EffortScale(NamedTuple):
    """Amounts of an effort: sequences, epochs, the fewest and most steps and epochs, tokens to heal on."""

    samples: int
    epochs: float
    fewest: int
    most: int
    most_epochs: int
    heal: int


SCALES: dict[EffortName, EffortScale] = {
    "quick": EffortScale(16, 1, 40, 120, 5, 0),
    "usual": EffortScale(64, 3, 120, 600, 10, 100_000),
    "thorough": EffortScale(128, 3, 200, 2000, 15, 500_000),
}


def efforts(amounts: Amounts, context: int | None = None) -> dict[EffortName, Effort]:
    """Return quick, usual and thorough for these rows or texts, in sequences that fit a model's context."""
    length = min(LENGTH, context or LENGTH, max(amounts.text_tokens // FEWEST_SEQUENCES, 2))
    epoch = -(-amounts.rows // BATCH)
    found = dict[EffortName, Effort]()
    for name, scale in SCALES.items():
        steps = min(max(round(scale.epochs * epoch), scale.fewest), scale.most_epochs * epoch, scale.most)
        heal = max(min(scale.heal, 4 * amounts.text_tokens), FEWEST_SEQUENCES * length)  # more epochs give little
        found[name] = Effort(
            name=name, method="admm", num_samples=scale.samples, sequence_length=length,
            heal=heal if scale.heal and not amounts.rows else 0,
            steps=max(steps, FEWEST_STEPS) if amounts.rows else 0,
            teaches=name == "thorough" and amounts.rows > 0, rival=amounts.questions > 0,
        )  # fmt: skip
    return found
