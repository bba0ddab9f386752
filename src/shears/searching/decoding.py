"""Many configurations in one batch of generation: every row has its own ranks, and the weights are read once for all.

N examples of a part.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig
from shears.adapt.sparse_adapter import is_sparse
from shears.data.examples import Example, prompt_of
from shears.evaluation.answers import numbers_equal
from shears.evaluation.generate import Decoder
from shears.evaluation.score import device_of
from shears.evaluation.scorers import Parts
from shears.evaluation.slopes import Slopes
from shears.evaluation.tasks import GENERATED
from shears.models import autocast
from shears.recipe import SearchConfig

WIDTH = 8
"""Configurations in a batch: beyond, time grows with the rows on most machines."""


class DecodingGauge:
    """Values are 1 where the number read from the generated answer is right, else 0; weights are 1.

    A batch holds `batch_size` prompts for each of up to `width` configurations. Each row is what it would be in a batch
    of one configuration: the same prompts, the same padding; only kernels may round otherwise in larger batches. A
    sparse adapter has one product for all rows, so that there its configurations come one by one.
    """

    def __init__(
        self, adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig, parts: Parts | None = None,
        width: int = WIDTH,
    ) -> None:  # fmt: skip
        task = GENERATED[config.task or ""]
        self._elastic, self._read, self._config = adapter.elastic, task.read, config
        self._device = device_of(adapter.model)
        self._decoder = Decoder(adapter.model, adapter.tokenizer, config.max_new_tokens, task.one_line)
        self.width = 1 if is_sparse(adapter.model) else width
        answers, parts = task.answers(examples), [range(len(examples))] if parts is None else parts
        self._prompts = [[prompt_of(examples[number]) for number in part] for part in parts]
        self._answers = [[answers[number] for number in part] for part in parts]
        self.sizes = [len(part) for part in parts]
        self.weights = torch.ones(len(examples), dtype=torch.float64)

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Float64[Tensor, " N"]]:
        """Return, for each configuration, which of the part's answers are right."""
        count = len(configs)
        prompts = [prompt for prompt in self._prompts[part] for _ in configs]  # copies of a prompt lie together

        def before(rows: Sequence[int]) -> None:
            if count > 1:
                self._elastic.activate_rows([configs[row % count] for row in rows])
            else:
                self._elastic.activate(configs[0])

        with autocast(self._config.precision, self._device):
            texts = self._decoder.answers(prompts, self._config.batch_size * count, before)
        self._elastic.activate(configs[0])  # no ranks by row are left behind
        right = [numbers_equal(self._read(text), self._answers[part][row // count]) for row, text in enumerate(texts)]
        return [torch.tensor(right[first::count], dtype=torch.float64) for first in range(count)]

    def anchor(self, ranks: RankConfig) -> None:
        """Nothing is kept: what is decoded depends on what was decoded before."""

    def slopes(self, ranks: RankConfig) -> Slopes | None:
        """Answers jump: there are none."""
        return None
