"""The recovery: a LoRA adapter that gives back what pruning removed, beside the sparse weights.

With D the removed weights and H the diagonal of the inputs' squared norms, ||(D - B A) H^(1/2)||_F
is least for B A = U U^T D, where U are the first left singular vectors of D H^(1/2) (Eckart and
Young). Nothing is divided by H, so input features without tokens need no special case.

Shapes: O output features, I input features, R rank.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from shears.checkpoints.tensor_files import refuse_non_finite
from shears.config.sparsify_options import SparsifyConfig
from shears.errors import InputError
from shears.models.blocks import Matrix
from shears.models.ref import ModelRef
from shears.records import artifacts
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER
from shears.records.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, A, B, rank_patterns
from shears.records.publishing import write_card

logger = logging.getLogger(__name__)
Factors = Mapping[str, tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]]
"""B and A of linears, by name."""

EXACT = 2048  # largest smaller side whose Gram matrix is decomposed exactly: seconds in float64
STEPS = 12  # of subspace iteration
SPARE = 16  # directions of the iteration beyond the rank
NUMERICAL_RANK_TOLERANCE = 1e-12
"""Share of the largest squared singular value; the vectors of smaller ones are rounding errors."""
Leading = tuple[Float[Tensor, " R"], Float[Tensor, "_ R"]]  # falling values, and their vectors


@torch.no_grad()
def recover(
    removed: Float[Tensor, "O I"], rank: int, norms: Float[Tensor, " I"] | None = None
) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    """Return B and A of this rank (min(O, I) at most) with the least ||(removed - B A) H^(1/2)||_F.

    H is diag(norms^2), or the identity without norms that are not all zero. Both are float32 on the
    CPU. Their components are in falling order, so that the first r are the best of rank r; the two
    vectors of a component have equal norms, 0 for one without energy. The result is exact in
    float64 if the smaller side is at most EXACT, else from seeded subspace iteration in float32.
    """
    exact = min(removed.shape) <= EXACT
    matrix = removed.double() if exact else removed.float()
    ones = matrix.new_ones(matrix.shape[1])
    metric = ones if norms is None or not norms.any() else norms.double().square().to(matrix)
    leading = _leading if exact else _leading_by_iteration
    energy, outputs = leading(matrix, metric, min(rank, *removed.shape))
    outputs = outputs.masked_fill(energy <= NUMERICAL_RANK_TOLERANCE * energy.max(), 0.0)
    inputs = outputs.T @ matrix
    root = inputs.norm(dim=1, keepdim=True).sqrt()
    b = outputs * root.T
    a = torch.where(root > 0, inputs / root, 0.0)
    return b.float().cpu().contiguous(), a.float().cpu().contiguous()


def _leading(matrix: Float[Tensor, "O I"], metric: Float[Tensor, " I"], rank: int) -> Leading:
    """Return the largest squared singular values of matrix metric^(1/2), with left vectors."""
    outputs, inputs = matrix.shape
    if outputs <= inputs:
        return _largest(matrix * metric @ matrix.T, rank)
    scaled = matrix * metric.sqrt()
    energy, vectors = _largest(scaled.T @ scaled, rank)
    return energy, scaled @ vectors / energy.sqrt().clamp_min(torch.finfo(energy.dtype).tiny)


def _largest(gram: Float[Tensor, "N N"], rank: int) -> Leading:
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    start = len(values) - rank
    return values[start:].flip(0).clamp_min(0), vectors[:, start:].flip(1)


def _leading_by_iteration(matrix: Float[Tensor, "O I"], metric: Float[Tensor, " I"], rank: int) -> Leading:
    """Approximate `_leading` by subspace iteration."""
    with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        vectors, values, _ = torch.svd_lowrank(matrix * metric.sqrt(), min(rank + SPARE, *matrix.shape), niter=STEPS)
    return values[:rank].square(), vectors[:, :rank]


class Recovered:
    """The recoveries of pruned linears that can carry LoRA; empty if `recover_rank` is 0."""

    def __init__(self, model: PreTrainedModel, pruned: Sequence[Matrix], config: SparsifyConfig) -> None:
        self._rank = config.recover_rank
        linears = [matrix for matrix in pruned if matrix.index is None] if self._rank else []
        self._carriers = frozenset(matrix for matrix in linears if _takes_lora(model, matrix.name))
        self.transposed = any(matrix.transposed for matrix in self._carriers)
        self.linears: dict[str, tuple[Tensor, Tensor]] = {}  # B and A
        if self._rank and not self._carriers:
            raise InputError("recover_rank needs a pruned linear that PEFT supports, there is none; set it to 0")
        if self._rank and (left := len(pruned) - len(self._carriers)):
            logger.warning("%d pruned weights get no recovery, because PEFT cannot put LoRA on them", left)

    def takes(self, matrix: Matrix) -> bool:
        return matrix in self._carriers

    def add(self, matrix: Matrix, removed: Float[Tensor, "O I"], norms: Float[Tensor, " I"] | None) -> None:
        """Compute the recovery of a weight; `removed` is the dense weight minus the pruned one."""
        removed = removed.cpu() if removed.device.type == "mps" else removed  # mps has no float64
        self.linears[matrix.name] = recover(removed, self._rank, norms)

    def tensors(self) -> dict[str, Tensor]:
        """Return all recoveries as tensors, from which `restore` makes them again."""
        pairs = self.linears.items()
        return {name + side: tensor for name, pair in pairs for side, tensor in zip((B, A), pair, strict=True)}

    def restore(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self.linears.update({name: (tensors[name + B], tensors[name + A]) for name in names})


def _takes_lora(model: PreTrainedModel, name: str) -> bool:  # not Mamba's linears, nor experts
    config = LoraConfig(target_modules=[name])
    try:
        _check_lora_target_modules_mamba(config, model, name.rpartition(".")[2])
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return False
    return name in config.target_modules


def write_factors(work: Path, base: Path, factors: Factors, *, transposed: bool, record: Mapping[str, Any]) -> None:
    """Write the products B A of linears, with a scaling of 1, as `work`/recovery."""
    folder = work / RECOVERY_FOLDER
    folder.mkdir()
    tensors = {
        f"{PREFIX}{name}{side}": tensor.contiguous()
        for name, (b, a) in factors.items()
        for side, tensor in ((A, a), (B, b))
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    ranks = {name: a.shape[0] for name, (_, a) in factors.items()}
    largest = max(ranks.values())
    patterns = rank_patterns(ranks, largest)  # alpha is the rank, so that the scaling is 1
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        target_modules=sorted(ranks),
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.resolve()),
        inference_mode=True,
    )
    artifacts.write_json(folder / ADAPTER_CONFIG, {**config.to_dict(), "target_modules": sorted(ranks)})
    whole = {
        "shears_version": artifacts.__version__,
        "base_fingerprint": artifacts.weights_fingerprint(work),
        "fingerprint": artifacts.weights_fingerprint(folder),
        "rank": largest,
        "linears": {name: {"rank": rank} for name, rank in ranks.items()},
        **record,
    }
    artifacts.write_json(folder / RECOVERY, whole)
    write_card(folder)


def recovery_record(base: ModelRef) -> dict[str, Any]:
    """Return the recovery's record in a sparse model's folder, once its weights are verified."""
    recovery = base.folder / RECOVERY_FOLDER
    if not (recovery / RECOVERY).is_file():
        raise InputError(f"init recovery needs {recovery}, which does not exist; prune with --recover-rank 32")
    record = artifacts.read_record(recovery, RECOVERY, "base_fingerprint")
    artifacts.check_input(f"the base model of {recovery}", record["base_fingerprint"], base.fingerprint)
    return record


def read_recovery(base: ModelRef) -> dict[str, Tensor]:
    """Return the tensors of a sparse model's recovery by PEFT's names; their scaling is 1."""
    recovery_record(base)
    tensors: dict[str, Tensor] = load_file(base.folder / RECOVERY_FOLDER / ADAPTER_WEIGHTS)
    refuse_non_finite(base.folder / RECOVERY_FOLDER, tensors.items())
    return tensors


@torch.no_grad()
def start_from_recovery(layers: Iterable[tuple[str, LoraLayer]], base: ModelRef, adapter: str = "default") -> None:
    """Set the adapter of named LoRA layers to the first components of a sparse base's recovery.

    The adapter's scaling is folded in, so that scaling * B A is the recovery's product of that
    rank. For ranks beyond the recovery's components with energy, A's rows stay as they are and B's
    columns are zero. InputError if the recovery lacks a linear of the adapter.
    """
    tensors = read_recovery(base)
    for name, layer in layers:
        if PREFIX + name + A not in tensors:
            raise InputError(
                f"init recovery needs a recovery of every linear with an adapter, {name} has none; "
                "leave it out of groups, or let sparsify prune it"
            )
        a = layer.lora_A[adapter].weight
        b = layer.lora_B[adapter].weight
        recovered = tensors[PREFIX + name + A]
        count = int(recovered[: a.shape[0]].any(1).sum())  # components without energy come last
        factor = layer.scaling[adapter] ** -0.5
        a[:count].copy_(recovered[:count] * factor)
        b.zero_()
        b[:, :count].copy_(tensors[PREFIX + name + B][:, :count] * factor)
