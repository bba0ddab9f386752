"""Write the recovery as an ordinary PEFT adapter beside the sparse weights, with a record of what it is and a card."""

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER, weights_fingerprint, write_json
from shears.records.cards.card import write_card
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, A, B, rank_patterns
from shears.records.version import __version__
from shears.sparsity.report import Recovered

logger = logging.getLogger(__name__)


def write_recovery(work: Path, base: Path, recovered: Recovered, by: str) -> None:
    """Write the folder `recovery` into `work`, which holds the sparse weights and will be called `base` in the end."""
    folder = work / RECOVERY_FOLDER
    folder.mkdir()
    tensors = {
        f"{PREFIX}{name}{side}": tensor
        for name, recovery in recovered.linears.items()
        for side, tensor in ((A, recovery.a), (B, recovery.b))
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, _adapter_config(recovered, base))
    record = {
        "shears_version": __version__,
        "base_fingerprint": weights_fingerprint(work),
        "fingerprint": weights_fingerprint(folder),
        "rank": recovered.rank,
        "by": by,
        "kept": recovered.kept,
        "linears": {
            name: {"rank": recovery.rank, "kept": recovery.kept} for name, recovery in recovered.linears.items()
        },
    }
    write_json(folder / RECOVERY, record)
    write_card(folder)
    size = sum(tensor.numel() for tensor in tensors.values())
    logger.info(
        "recovery of rank %d gives back %.1f %% of what pruning took away (by %s): %.4g M adapter parameters",
        recovered.rank, 100 * recovered.kept, by, size / 1e6,
    )  # fmt: skip


def _adapter_config(recovered: Recovered, base: Path) -> dict[str, Any]:
    """Return PEFT's own configuration as JSON data; its sets come sorted, for they have no order."""
    from peft import LoraConfig

    patterns = rank_patterns({name: recovery.rank for name, recovery in recovered.linears.items()}, recovered.rank)
    config = LoraConfig(
        r=recovered.rank,
        lora_alpha=recovered.rank,
        target_modules=sorted(recovered.linears),
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),  # alpha is the rank everywhere: nothing is scaled
        fan_in_fan_out=recovered.transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.resolve()),
        inference_mode=True,
    )
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
