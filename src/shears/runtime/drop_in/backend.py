"""A package of any architecture as a backend: transformers runs the model, its linears are packed."""

from collections.abc import Mapping

from torch import Tensor

from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import PackedMatrix
from shears.models.devices import set_threads
from shears.models.load import load_with_adapter
from shears.models.ref import AnyModel, resolve
from shears.records.artifacts import read_object
from shears.records.peft_files import linear_of
from shears.runtime.drop_in.convert import Ready, sparsify_linears
from shears.runtime.drop_in.linear import KernelLinear, PackedLinear
from shears.runtime.engine.transformers_backend import TransformersBackend
from shears.runtime.native.available import kernels_available
from shears.runtime.native.model_source import NEUTRAL

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")  # names of heads in files


class DropInBackend(TransformersBackend):
    """Runs a package's model in transformers with packed linears, adapters fused into them.

    InputError for what is no whole package.
    """

    def __init__(self, model: AnyModel, threads: int | None = None, dtype: str = "auto") -> None:
        set_threads(threads)
        ref = resolve(model)
        network, self.tokenizer = load_with_adapter(ref, dtype=dtype, device="cpu")
        super().__init__(network, "drop-in")
        ready = Ready(unmoved(ref.package), head_of(ref.package))
        self.packed = sparsify_linears(network, ready=ready, threads=threads)

    def describe(self) -> Mapping[str, object]:
        """Return what runs here; the memory counts packed weights and the kernels' copy of the head."""
        linears = [module for module in self._model.modules() if isinstance(module, KernelLinear)]
        packed = {module.matrix.values_dtype for module in linears if isinstance(module, PackedLinear)}
        found = dict(super().describe())
        memory = sum(module.matrix.num_bytes for module in linears if isinstance(module, PackedLinear))
        if kernels_available():
            from shears.runtime.native import kernels as native

            found["isa"] = native.features()["isa"]
            memory = next((linear.kernel.matrix.buffer.bytes for linear in linears if linear.kernel), 0)
        values = "+".join(sorted(packed)) or found["values"]
        return {**found, "values": values, "memory_bytes": int(str(found["memory_bytes"])) + memory}


def unmoved(package: Package) -> Mapping[str, PackedMatrix]:
    """Return the packed weights that are still the model's once PEFT has put the adapter on it.

    An adapter whose start was taken out of the base (pissa, olora, ...) takes it out again when it is loaded.
    """
    settings = read_object(package.adapter_config_file()) if package.index.adapter else {}
    start = settings.get("init_lora_weights")
    if not start or start in NEUTRAL["init_lora_weights"]:
        return package.packed
    adapted = set(map(linear_of, package.index.adapter))
    return {
        linear: matrix for linear, matrix in package.packed.items()
        if not any(f".{name}".endswith(f".{linear}") for name in adapted)
    }  # fmt: skip


def head_of(package: Package) -> tuple[Tensor, Tensor] | None:
    """Return a head in 8 bits with its scales; None where the package's head is no such."""
    index = package.index
    quantized = [name for name, entry in index.dense.items() if entry.quantized]
    heads = [name for name in (*HEADS, *quantized) if index.tied.get(name, name) in quantized]
    if not heads or (len(quantized) > 1 and heads[0] not in HEADS):
        return None
    name = f"dense.{index.tied.get(heads[0], heads[0])}"
    return package.tensors[name], package.tensors[f"{name}.scales"]
