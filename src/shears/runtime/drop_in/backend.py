"""A package of any architecture as a backend: transformers runs the model with packed linears."""

from collections.abc import Mapping

from torch import Tensor

from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import PackedMatrix
from shears.models.devices import set_threads
from shears.models.load import load_with_adapter
from shears.models.ref import AnyModel, resolve
from shears.records.artifacts import read_object
from shears.records.peft_files import linear_of
from shears.runtime.drop_in.linears import KernelLinear, PackedLinear
from shears.runtime.drop_in.swap import ReadyWeights, sparsify_linears
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.native import kernels_available
from shears.runtime.native.model_source import NEUTRAL

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")  # names of heads in files


class DropInBackend(TransformersBackend):
    """Runs a package's model in transformers with packed linears, adapters fused into them.

    InputError for a folder that is no whole package.
    """

    def __init__(self, model: AnyModel, threads: int | None = None, dtype: str = "auto") -> None:
        set_threads(threads)
        ref = resolve(model)
        network, self.tokenizer = load_with_adapter(ref, dtype=dtype, device="cpu")
        super().__init__(network, "drop-in")
        ready = ReadyWeights(unchanged_weights(ref.package), quantized_head(ref.package))
        self.packed = sparsify_linears(network, ready=ready, threads=threads)

    def describe(self) -> Mapping[str, object]:
        """Return plain data about this backend; memory_bytes includes packed weights and the kernels' copies."""
        linears = [module for module in self._model.modules() if isinstance(module, KernelLinear)]
        packed = [module.matrix for module in linears if isinstance(module, PackedLinear)]
        about = dict(super().describe())
        memory = sum(matrix.num_bytes for matrix in packed)
        if kernels_available():
            from shears.runtime.native import kernels as native

            about["isa"] = native.features()["isa"]
            memory = next((linear.kernel.matrix.buffer.bytes for linear in linears if linear.kernel), 0)
        values = "+".join(sorted({matrix.values_dtype for matrix in packed})) or about["values"]
        return {**about, "values": values, "memory_bytes": int(str(about["memory_bytes"])) + memory}


def unchanged_weights(package: Package) -> Mapping[str, PackedMatrix]:
    """Return the packed weights that loading the adapter leaves as they are.

    PEFT subtracts the start of some adapters (pissa, olora, ...) from the base, again at every loading.
    """
    settings = read_object(package.adapter_config_file()) if package.index.adapter else {}
    start = settings.get("init_lora_weights")
    if not start or start in NEUTRAL["init_lora_weights"]:
        return package.packed
    adapted = [f".{linear_of(name)}" for name in package.index.adapter]
    return {
        linear: matrix
        for linear, matrix in package.packed.items()
        if not any(name.endswith(f".{linear}") for name in adapted)
    }


def quantized_head(package: Package) -> tuple[Tensor, Tensor] | None:
    """Return the head and its scales if it is in 8 bits, else None."""
    index = package.index
    quantized = [name for name, entry in index.dense.items() if entry.quantized]
    heads = [name for name in (*HEADS, *quantized) if index.tied.get(name, name) in quantized]
    if not heads or (len(quantized) > 1 and heads[0] not in HEADS):
        return None
    name = f"dense.{index.tied.get(heads[0], heads[0])}"
    return package.tensors[name], package.tensors[f"{name}.scales"]
