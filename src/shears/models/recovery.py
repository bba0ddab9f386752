"""The recovery adapter in the folder of a sparse model: what pruning removed, as a low-rank product."""

from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from shears.checkpoints.tensor_files import refuse_non_finite
from shears.errors import InputError
from shears.models.ref import ModelRef
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER, check_input, read_record
from shears.records.peft_files import ADAPTER_WEIGHTS


def read_recovery(base: ModelRef) -> dict[str, Tensor]:
    """Return the tensors of the recovery in the folder of a sparse model, by PEFT's names.

    Its alpha is its rank, so that their product needs no scaling. InputError as in
    `recovery_record`, and for weights that are not finite.
    """
    recovery_record(base)
    tensors: dict[str, Tensor] = load_file(base.folder / RECOVERY_FOLDER / ADAPTER_WEIGHTS)
    refuse_non_finite(base.folder / RECOVERY_FOLDER, tensors.items())
    return tensors


def recovery_record(base: ModelRef) -> dict[str, Any]:
    """Return the record of the recovery in the folder of a sparse model, once its weights are verified.

    InputError if it is missing or was made for other weights.
    """
    recovery = base.folder / RECOVERY_FOLDER
    if not (recovery / RECOVERY).is_file():
        raise InputError(f"init recovery needs {recovery}; make it with shears sparsify --recover-rank N")
    record = read_record(recovery, RECOVERY)
    check_input(f"the base model of {recovery}", record["base_fingerprint"], base.fingerprint)
    return record
