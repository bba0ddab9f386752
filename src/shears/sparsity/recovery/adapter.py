"""The recoveries of pruned linears, computed one after the other while pruning."""

import logging

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from shears.blockwise.matrices import Matrix
from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.sparsity.methods.task import Needs
from shears.sparsity.plan import Chosen
from shears.sparsity.recovery.low_rank import Recovery, recover
from shears.sparsity.report import Recovered

logger = logging.getLogger(__name__)


class Recoveries:
    """Gathers the recovery of every linear that can carry LoRA; of none where the recipe asks for none.

    InputError where one is asked for and no pruned weight can carry LoRA; a warning of those that cannot.
    """

    def __init__(self, model: PreTrainedModel, chosen: Chosen, config: SparsifyConfig) -> None:
        self._rank, self._by = config.recover_rank, config.recover_by
        self._carriers = _carriers(model, chosen) if self._rank else frozenset[Matrix]()
        self._found: dict[str, Recovery] = {}

    def needs(self, matrix: Matrix) -> Needs:
        """Return what has to be known of the weight's inputs."""
        return self._by if matrix in self._carriers else "nothing"

    def take(
        self,
        matrix: Matrix,
        removed: Float[Tensor, "O I"],
        norms: Float[Tensor, " I"] | None,
        moments: Float[Tensor, "I I"] | None,
    ) -> None:
        """Compute the recovery of a weight from what pruning took away and what is known of the inputs."""
        place = removed.cpu() if removed.device.type == "mps" else removed  # mps has no float64
        by_moments = self._by == "moments"
        self._found[matrix.name] = recover(place, self._rank, norms, moments if by_moments else None)

    def report(self) -> Recovered | None:
        """Return all of them, in the order of pruning; None where none were asked for."""
        if not self._rank:
            return None
        return Recovered(self._found, any(matrix.transposed for matrix in self._carriers))


def _carriers(model: PreTrainedModel, chosen: Chosen) -> frozenset[Matrix]:
    matrices, sizes = chosen.matrices, chosen.sizes
    carriers = frozenset(matrix for matrix in matrices if matrix.index is None and _takes_lora(model, matrix.name))
    if not carriers:
        raise InputError(
            "recover_rank needs a pruned linear that PEFT puts LoRA on, and there is none (stacks of experts are not); "
            "set recover_rank=0"
        )
    rest = [matrix.name for matrix in matrices if matrix not in carriers]
    if rest:
        share = 100 * sum(sizes[name] for name in rest) / sum(sizes.values())
        logger.warning("%.1f %% of the pruned weights get no recovery: PEFT puts no LoRA there (%s)", share, rest[0])
    return carriers


def _takes_lora(model: PreTrainedModel, name: str) -> bool:
    """Ask PEFT for a linear: it refuses those that kernels of Mamba read past their module, and takes names such as
    up_proj for the experts in mixtures that transformers 5 stores otherwise (the shared experts of DeepSeek).
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        _check_lora_target_modules_mamba(config, model, name.rpartition(".")[2])
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return False
    return name in config.target_modules
