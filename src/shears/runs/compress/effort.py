"""How much each stage of a compression does: quick, usual, thorough, or what fits a time.

The amounts follow docs/log.md: ADMM's choice gets better up to 64 sequences; three epochs are ten
points above one on 1,700 rows; few rows need steps, not epochs; a teacher trained on the rows adds
a point; healing before a training on the same rows adds nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from shears.config import CompressConfig, TrainConfig
from shears.config.compress_options import EFFORTS, EffortName
from shears.runs.compress.candidates import Candidate
from shears.runs.compress.exam import num_windows
from shears.runs.compress.recipes import BEST_METHOD, WITH_SENSITIVITY
from shears.runs.compress.speeds import Speeds

TEACHER = "teacher"  # the folder of the dense model's adapter
BATCH: int = TrainConfig.model_fields["batch_size"].default
FEWEST_STEPS = 10  # below this a training teaches nothing
DENSE_SHARE = 0.1  # of the time that the model as it came may answer: untrained answers are long
FEWEST_QUESTIONS = 50  # that it answers all the same
SLOW = 10.0  # tokens a second of a model whose speed is not predicted
DECODED = 130  # tokens that a measured speed takes, its warm-up included
FEWEST_SEQUENCES = 4  # of a text: a step of healing takes so many
PRUNING_PASSES = 1.5  # forward passes of a calibration token: each block reads it twice, no head does
ROUNDING_PASSES = 4.0  # the same of rounding with the text's inputs: both models, rounded and not
GRADIENT_TOKENS = 4 * 3.0  # sequences of sensitivity, in forward passes of a token
HEAL_PASSES = 5.0  # the teacher's pass, the student's forward and backward, and its weights' gradients


class Amounts(NamedTuple):
    """What is there to be read: rows to train on, their mean tokens, tokens of the texts, questions."""

    rows: int
    row_tokens: float
    text_tokens: int
    held_out_tokens: int
    questions: int


@dataclass(frozen=True)
class Effort:
    """What the stages do. `heal` is in tokens, `steps` those of every training; None: left out.

    With `teaches` the dense model is trained on the rows first, and teaches. `attempts` are the
    candidates that are made at most; with `rival` dense int4 is trained alike.
    """

    name: str
    method: str
    num_samples: int
    sequence_length: int
    heal: int | None
    steps: int | None
    teaches: bool
    attempts: int
    rival: bool

    def applied(self, settings: CompressConfig, folder: Path) -> CompressConfig:
        """Return the settings with the amounts of this effort."""
        teacher = str(folder / TEACHER) if self.teaches else settings.teacher
        return settings.model_copy(update={
            "method": self.method, "num_samples": self.num_samples, "sequence_length": self.sequence_length,
            "heal": self.heal, "max_steps": self.steps, "teacher": teacher, "attempts": self.attempts,
        })  # fmt: skip


class EffortScale(NamedTuple):
    """Amounts of an effort: sequences, epochs, the fewest and most steps and epochs, tokens to heal on."""

    samples: int
    epochs: float
    fewest: int
    most: int
    most_epochs: int
    heal: int | None


SCALES: Mapping[EffortName, EffortScale] = {
    "quick": EffortScale(16, 1, 40, 120, 5, None),
    "usual": EffortScale(64, 3, 120, 600, 10, 100_000),
    "thorough": EffortScale(128, 3, 200, 2000, 15, 500_000),
}


def steps_of(scale: EffortScale, rows: int) -> int:
    """Return the optimizer steps for so many rows: those of the epochs, or more where rows are few."""
    epoch = -(-rows // BATCH)
    wanted = min(max(round(scale.epochs * epoch), scale.fewest), scale.most_epochs * epoch, scale.most)
    return max(wanted, FEWEST_STEPS)


def efforts(settings: CompressConfig, amounts: Amounts) -> dict[str, Effort]:
    """Return quick, usual and thorough for these rows and texts; what the settings name stays as it is."""
    length = min(settings.sequence_length, max(amounts.text_tokens // FEWEST_SEQUENCES, 2))
    trains = settings.data is not None
    found = dict[str, Effort]()
    for name, scale in SCALES.items():
        heal = settings.heal or (None if trains else scale.heal)
        if settings.heal is None and heal is not None:  # more than four epochs of healing give little
            heal = max(min(heal, 4 * amounts.text_tokens), FEWEST_SEQUENCES * length)
        reference = settings.target is None  # the dense fine-tuned model, which is measured against
        found[name] = Effort(
            name=name, method=settings.method or BEST_METHOD, num_samples=settings.num_samples or scale.samples,
            sequence_length=length, heal=heal if any(settings.sparsities) else None,
            steps=(settings.max_steps or steps_of(scale, amounts.rows)) if trains else None,
            teaches=trains and settings.teacher is None and (name == "thorough" or reference),
            attempts=settings.attempts, rival=amounts.questions > 0,
        )  # fmt: skip
    return found


class Costs(NamedTuple):
    """What the seconds of an effort follow from. `tries` are the packages that will likely be made."""

    speeds: Speeds
    amounts: Amounts
    settings: CompressConfig
    first: Candidate
    tries: int = 1

    def seconds(self, effort: Effort) -> dict[str, float]:
        """Return the seconds of every stage of an effort, by name in the order of the stages."""
        once = self._stages(effort)
        stages = {"dense": self._measured(self.speeds.question, self.asked_as_it_came)}
        if effort.teaches:
            stages[TEACHER] = self._trained(effort)
            if self.settings.target is None:
                stages[TEACHER] += self._measured(self.speeds.trained_question, self.amounts.questions)
        stages |= {name: seconds * min(self.tries, effort.attempts) for name, seconds in once.items()}
        if effort.rival and self.first.sparsity:
            stages["rival"] = sum(once[name] for name in ("train", "export", "measure") if name in once)
        return stages

    @property
    def asked_as_it_came(self) -> int:
        """The questions that the model as it came answers: all, or fewer where a time is short."""
        most = self.amounts.questions
        limit = self.settings.seconds
        if limit is None or not self.speeds.question:
            return most
        return min(max(int(DENSE_SHARE * limit / self.speeds.question), FEWEST_QUESTIONS), most)

    def _stages(self, effort: Effort) -> dict[str, float]:
        """Return the seconds of one package's stages."""
        speeds = self.speeds
        has_zeros = self.first.sparsity > 0
        tokens = min(effort.num_samples * effort.sequence_length, self.amounts.text_tokens)
        stages = {"sparsify": 2 * speeds.load}
        if has_zeros and effort.method != "magnitude":
            stages["sparsify"] += PRUNING_PASSES * tokens * speeds.forward + speeds.pruning * (effort.method != "wanda")
        if has_zeros and effort.method in WITH_SENSITIVITY:
            stages["sparsify"] += GRADIENT_TOKENS * effort.sequence_length * speeds.forward
        if effort.heal and has_zeros:
            stages["heal"] = HEAL_PASSES * effort.heal * speeds.forward + 3 * speeds.load
        if effort.steps is not None:
            stages["train"] = self._trained(effort)
        stages["export"] = 2 * speeds.load
        if effort.steps is None and "heal" not in stages and self.first.values == "int4":
            stages["export"] += ROUNDING_PASSES * tokens * speeds.forward + speeds.pruning
        stages["measure"] = self._measured(speeds.trained_question, self.amounts.questions)
        return stages

    def _trained(self, effort: Effort) -> float:
        speeds = self.speeds
        learns = effort.teaches or self.settings.teacher is not None
        teacher = self.amounts.rows * self.amounts.row_tokens * speeds.forward if learns else 0.0
        return 2 * speeds.load + (effort.steps or 0) * BATCH * self.amounts.row_tokens * speeds.trained + teacher

    def _measured(self, question: float, questions: int) -> float:
        """Return the seconds of measuring a model: its loss, its answers, its speed."""
        windows = num_windows(self.amounts.questions > 0, self.settings.num_samples) * self.settings.sequence_length
        tokens = min(windows, self.amounts.held_out_tokens)
        decoded = DECODED / (self.first.tokens_per_second or SLOW)
        return self.speeds.load + tokens * self.speeds.forward + questions * question + decoded


def fitted(found: Mapping[str, Effort], costs: Costs, spent: float) -> Effort:
    """Return the effort that fits the settings' time, of which `spent` seconds are gone.

    It is the most thorough one that has the steps of the next lower one, with as many of its own
    steps as fit. Where nothing else fits, wanda takes the place of admm, then the rival and further
    attempts are left out; the last is returned even if it takes longer.
    """
    assert costs.settings.seconds is not None
    left = costs.settings.seconds - spent
    ladder = _ladder(found, costs.settings)
    for effort, most in ladder:
        if total_seconds(costs, effort) <= left:
            return _longest(effort, most, left, costs)
    return ladder[-1][0]


def total_seconds(costs: Costs, effort: Effort) -> float:
    """Return the seconds of all stages of an effort."""
    return sum(costs.seconds(effort).values())


def _ladder(found: Mapping[str, Effort], settings: CompressConfig) -> list[tuple[Effort, int]]:
    """Return the efforts from the most thorough, each with its fewest steps, and its most."""
    steps = [found[name].steps or 0 for name in EFFORTS]
    quick = found["quick"]
    rungs = [(found["thorough"], steps[1]), (found["usual"], steps[0]), (quick, FEWEST_STEPS)]
    if settings.method is None and any(settings.sparsities):
        quick = replace(quick, method="wanda")
        rungs.append((quick, FEWEST_STEPS))
    rungs.append((replace(quick, rival=False, attempts=1), FEWEST_STEPS))
    if settings.data is None or settings.max_steps is not None:
        return [(effort, effort.steps or 0) for effort, _ in rungs]
    return [(replace(effort, steps=min(fewest, effort.steps or 0)), effort.steps or 0) for effort, fewest in rungs]


def _longest(effort: Effort, most: int, seconds: float, costs: Costs) -> Effort:
    """Return the effort with the most steps that fit, from its own to `most`."""
    if effort.steps is None or effort.steps >= most:
        return effort
    low, high = effort.steps, most
    while low < high:
        middle = (low + high + 1) // 2
        if total_seconds(costs, replace(effort, steps=middle)) <= seconds:
            low = middle
        else:
            high = middle - 1
    return replace(effort, steps=low)


def left_out(effort: Effort, whole: Effort, over: float) -> list[str]:
    """Return in words what an effort leaves out of the most thorough one; `over` are seconds beyond the time."""
    steps = (effort.steps or 0, whole.steps or 0)
    parts = {
        f"{steps[1] - steps[0]} of {steps[1]} training steps": steps[0] < steps[1],
        f"calibration on {whole.num_samples} sequences ({effort.num_samples} are read)":
            effort.num_samples < whole.num_samples,
        f"healing on {whole.heal or 0:,} tokens ({effort.heal or 0:,} are read)":
            (effort.heal or 0) < (whole.heal or 0),
        "a teacher": whole.teaches and not effort.teaches,
        f"{whole.method} ({effort.method} prunes)": effort.method != whole.method,
        "dense int4 to compare with": whole.rival and not effort.rival,
        f"nothing more: it takes about {over / 60:.0f} min longer than the time": over > 0,
    }  # fmt: skip
    return [what for what, is_so in parts.items() if is_so]
