"""What the record of a super-adapter says of a training that shears did not run."""

from typing import Literal

from pydantic import Field

from shears.config.fields import StageConfig
from shears.config.train import TrainConfig

_TRAIN = TrainConfig.model_fields


class OwnLoopConfig(StageConfig):
    """What `ElasticAdapter.save` cannot read off a model: the training's examples and how they became tokens."""

    data: str | None = None
    """Training examples, as `train --data` names them: they are recorded with their hash, and questions of a
    validation or test file that stand in them are marked; default: unknown, so that nothing is marked."""
    template: Literal["question", "alpaca"] = _TRAIN["template"].default
    """Prompt template of instruction/input/output rows that the training used; other rows need none."""
    max_length: int = Field(_TRAIN["max_length"].default, gt=1)
    """Largest number of tokens in an example; search skips longer examples and counts them."""
