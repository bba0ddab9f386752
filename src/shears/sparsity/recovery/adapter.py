"""The recovery: a LoRA adapter that gives back what pruning removed, written beside the sparse weights."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from shears import __version__
from shears.config.sparsify import Needs, SparsifyConfig
from shears.errors import InputError
from shears.models.blockwise.matrices import Matrix
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER, weights_fingerprint, write_json
from shears.records.card import write_card
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, A, B, rank_patterns
from shears.sparsity.plan import Chosen
from shears.sparsity.recovery.low_rank import Recovery, recover

logger = logging.getLogger(__name__)
Factors = Mapping[str, tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]]
"""B and A of linears, by name."""


@dataclass(frozen=True)
class Recovered:
    """Recoveries of the pruned linears by name; `transposed` means weights of inputs x outputs (Conv1D)."""

    linears: Mapping[str, Recovery]
    transposed: bool

    @property
    def rank(self) -> int:
        """Largest rank of any linear."""
        return max(recovery.rank for recovery in self.linears.values())

    @property
    def kept(self) -> float:
        """Share of the removed energy that the recovery gives back, over all linears together."""
        total = sum(recovery.total for recovery in self.linears.values())
        return sum(float(recovery.energy.sum()) for recovery in self.linears.values()) / total if total else 1.0


class Recoveries:
    """Computes the recovery of every pruned linear that can carry LoRA; does nothing where `recover_rank` is 0.

    Pruned weights that cannot carry LoRA are logged. InputError where no pruned weight can.
    """

    def __init__(self, model: PreTrainedModel, chosen: Chosen, config: SparsifyConfig) -> None:
        self._rank = config.recover_rank
        self._by = config.recover_by
        self._carriers = _carriers(model, chosen) if self._rank else frozenset[Matrix]()
        self._recoveries: dict[str, Recovery] = {}

    def needs(self, matrix: Matrix) -> Needs:
        """Return the statistics of the weight's inputs that its recovery needs."""
        return self._by if matrix in self._carriers else "nothing"

    def add(
        self,
        matrix: Matrix,
        removed: Float[Tensor, "O I"],
        norms: Float[Tensor, " I"] | None,
        moments: Float[Tensor, "I I"] | None,
    ) -> None:
        """Compute the recovery of a weight; `removed` is the dense weight minus the pruned one."""
        removed = removed.cpu() if removed.device.type == "mps" else removed  # mps has no float64
        self._recoveries[matrix.name] = recover(removed, self._rank, norms, moments if self._by == "moments" else None)

    def result(self) -> Recovered | None:
        """Return all recoveries in the order of pruning; None where `recover_rank` is 0."""
        if not self._rank:
            return None
        return Recovered(self._recoveries, any(matrix.transposed for matrix in self._carriers))


def _carriers(model: PreTrainedModel, chosen: Chosen) -> frozenset[Matrix]:
    """Return the chosen weights that PEFT can put LoRA on."""
    carriers = frozenset(
        matrix for matrix in chosen.matrices if matrix.index is None and _takes_lora(model, matrix.name)
    )
    if not carriers:
        raise InputError(
            "recover_rank needs a pruned linear that PEFT puts LoRA on, and there is none (stacks of experts are not); "
            "set recover_rank=0"
        )
    others = [matrix.name for matrix in chosen.matrices if matrix not in carriers]
    if others:
        sizes = chosen.sizes
        share = 100 * sum(sizes[name] for name in others) / sum(sizes.values())
        logger.warning("%.1f %% of the pruned weights get no recovery: PEFT puts no LoRA there (%s)", share, others[0])
    return carriers


def _takes_lora(model: PreTrainedModel, name: str) -> bool:
    """Return whether PEFT puts LoRA on a linear.

    PEFT refuses linears whose weights are read by Mamba's kernels past their module. It also takes names such as
    up_proj for the experts of mixtures that transformers 5 stores otherwise (the shared experts of DeepSeek).
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


def write_recovery(work: Path, base: Path, recovered: Recovered, by: str) -> None:
    """Write the folder `recovery`, a PEFT adapter with record and card, into the sparse model's folder `work`.

    `base` is the name that `work` gets at the end.
    """
    factors = {name: (recovery.b, recovery.a) for name, recovery in recovered.linears.items()}
    linears = {name: {"rank": recovery.rank, "kept": recovery.kept} for name, recovery in recovered.linears.items()}
    record = {"by": by, "kept": recovered.kept, "linears": linears}
    write_factors(work, base, factors, transposed=recovered.transposed, record=record)
    size = sum(tensor.numel() for pair in factors.values() for tensor in pair) / 1e6
    message = "recovery of rank %d gives back %.1f %% of what pruning took away (by %s): %.4g M adapter parameters"
    logger.info(message, recovered.rank, 100 * recovered.kept, by, size)


def write_factors(work: Path, base: Path, factors: Factors, *, transposed: bool, record: Mapping[str, Any]) -> None:
    """Write the products B A of linears as the folder `recovery` of the model in `work`.

    Their scaling is 1. `base` is the name that `work` gets at the end, `transposed` means weights of inputs x outputs,
    and `record` goes into the adapter's record.
    """
    folder = work / RECOVERY_FOLDER
    folder.mkdir()
    tensors = {
        f"{PREFIX}{name}{side}": tensor.contiguous()
        for name, (b, a) in factors.items()
        for side, tensor in ((A, a), (B, b))
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    ranks = {name: a.shape[0] for name, (_, a) in factors.items()}
    write_json(folder / ADAPTER_CONFIG, _adapter_config(ranks, base, transposed=transposed))
    whole = {
        "shears_version": __version__,
        "base_fingerprint": weights_fingerprint(work),
        "fingerprint": weights_fingerprint(folder),
        "rank": max(ranks.values()),
        **record,
    }
    write_json(folder / RECOVERY, whole)
    write_card(folder)


def _adapter_config(ranks: Mapping[str, int], base: Path, *, transposed: bool) -> dict[str, Any]:
    """Return PEFT's configuration as JSON data, with its sets sorted, because sets have no order."""
    from peft import LoraConfig

    largest = max(ranks.values())
    patterns = rank_patterns(ranks, largest)
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        target_modules=sorted(ranks),
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),  # alpha is the rank everywhere, so that the scaling is 1
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.resolve()),
        inference_mode=True,
    )
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
