"""A LoRA layer of PEFT whose weight and active adapter are one multiplication.

PEFT walks a model for its layers; what it would pass over, and leave the adapter as it is, is refused here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor

from shears.checkpoints.packed.layout import PackedMatrix
from shears.errors import InputError
from shears.runtime.drop_in.linears import Kernel, LowRank, PackedLinear


class FusedLinear(PackedLinear):
    """A packed linear with the adapter that was active when it was packed; it keeps that one.

    The adapter's parameters are shown and saved as PEFT's; changing them changes nothing that is computed.
    """

    merged_adapters: Sequence[str] = ()
    merged, disable_adapters, cast_input_dtype_enabled = False, False, True
    adapter_layer_names, other_param_names = ("lora_A", "lora_B"), ()
    lora_embedding_A: Mapping[str, Tensor] = {}  # noqa: N815  # PEFT's name

    def __init__(self, matrix: PackedMatrix, original: LoraLinear, update: LowRank, kernel: Kernel | None) -> None:
        super().__init__(matrix, original, update, kernel)
        self.lora_A, self.lora_B = original.lora_A, original.lora_B

    def forward(self, x: Float[Tensor, "*B I"], adapter_names: object = None) -> Float[Tensor, "*B O"]:
        """Return the outputs; InputError where PEFT asks for adapters by row."""
        if adapter_names is not None:
            self._refuse("chosen by row")
        return super().forward(x)

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that PEFT's layer has active."""
        found: list[str] = self.original[0].active_adapters  # type: ignore[assignment]
        return found

    @property
    def active_adapter(self) -> Any:
        """The same as PEFT's layer has it."""
        return self.original[0].active_adapter

    def enable_adapters(self, enabled: bool) -> None:
        """Leave the adapter on; InputError where it is to be switched off."""
        if not enabled:
            self._refuse("switched off")

    def set_adapter(self, adapter_names: str | Sequence[str], *_: Any, **__: Any) -> None:
        """Leave the active adapter as it is; InputError where it is to be another."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if names != self.active_adapters:
            self._refuse(f"changed to {', '.join(names)}")

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Leave the adapter untrained; InputError where it is to be trained."""
        if requires_grad:
            self._refuse("trained")

    def unmerge(self) -> None:
        """Leave the adapter beside the weight, where it is."""

    def merge(self, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError."""
        self._refuse("merged")

    def unload_and_optionally_merge_module(self, merge: bool, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError."""
        self._refuse("merged" if merge else "taken off")

    def update_layer(self, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError: PEFT asks for it when an adapter is loaded."""
        self._refuse("joined by another")

    def get_base_layer(self) -> NoReturn:
        """Raise InputError: the weight is packed."""
        self._refuse("joined by another")

    def delete_adapter(self, adapter_name: str) -> NoReturn:
        """Raise InputError."""
        self._refuse("deleted")

    def _get_available_adapters(self) -> set[str]:
        return set(self.lora_A)

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"an adapter that is packed with its linear cannot be {what}; call densify_linears on the model first, or "
            "sparsify_linears with fuse=False"
        )


LoraLayer.register(FusedLinear)
