"""transformers' quantizer of packages: `from_pretrained` opens one after `import shears`.

transformers resolves and downloads the files; the weights are loaded as in every verb of shears. The
module is imported in the middle of transformers' own import, so it imports little.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from shears.checkpoints.packed.marks import ADAPTER, METHOD
from shears.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackageConfig(QuantizationConfigMixin):
    """The quantization_config in a package's config.json."""

    def __init__(self, adapter_config: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # a name beside those of the enum
        if adapter_config is not None:
            setattr(self, ADAPTER, adapter_config)


class PackageQuantizer(HfQuantizer):
    """Gives transformers a package's model: linears packed, the adapter in the same products, frozen."""

    requires_calibration = True  # transformers' word for: opens what is quantized, quantizes nothing
    is_trainable = True  # by an adapter on top

    def __init__(self, quantization_config: PackageConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._device = torch.device("cpu")
        self._dtype: torch.dtype | None = None
        self._folder = Path()

    def update_device_map(self, device_map: Any) -> None:
        """Note the one device; InputError for several, on which packed linears cannot be spread."""
        places = set(map(str, device_map.values())) if isinstance(device_map, dict) else {str(device_map)}
        if len(places) > 1 or places & {"disk"}:
            raise InputError(f"a package is loaded onto one device, got {', '.join(sorted(places))}; name one")
        (place,) = places
        if place not in ("None", "auto", "balanced", "balanced_low_0", "sequential"):
            self._device = torch.device(int(place) if place.isdigit() else place)

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Note the dtype of the model."""
        self._dtype = dtype
        return dtype

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file of the weights, which a package names for shears alone; refuse hostile ones."""
        from shears.checkpoints.packed.file import PACKAGE_FILE
        from shears.checkpoints.without_code import refuse_hostile

        refuse_hostile(config, Path(config.name_or_path))
        config.transformers_weights = PACKAGE_FILE
        return config

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: Any = None, **_: Any
    ) -> None:
        """Empty the model, so that transformers has nothing to load: tensors of a package are not the model's."""
        if not checkpoint_files:
            raise InputError("a package is loaded from a folder or the hub, got weights in memory")
        from shears.checkpoints.without_code import refuse_hostile

        self._folder = Path(checkpoint_files[0]).parent
        refuse_hostile(model.config, self._folder)  # again, for what transformers downloaded since
        model.__dict__.update({key: value for key, value in nn.Module().__dict__.items() if key.startswith("_")})
        model.all_tied_weights_keys = {}
        model._keys_to_ignore_on_load_unexpected = {""}  # all

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **_: Any) -> "PreTrainedModel":
        from shears.models.devices import DTYPES
        from shears.models.ref import ModelRef
        from shears.runtime.drop_in.swap import packed_model

        config = model.config
        dtype = next((name for name, each in DTYPES.items() if each == self._dtype), None)
        if dtype is None:
            raise InputError(f"dtype must be float32, bfloat16 or float16, got {self._dtype}")
        ref = ModelRef(self._folder, str(config.name_or_path), needs_record=False)
        loaded = _without_peft(packed_model(ref, dtype, config=config))
        nn.Module.to(loaded, self._device)
        loaded.config.quantization_config = self.quantization_config
        loaded.config.name_or_path = config.name_or_path
        kept = {key: model.__dict__[key] for key in KEPT if key in model.__dict__}
        model.__dict__.clear()
        model.__dict__.update({**loaded.__dict__, **kept})
        return model

    def _dequantize(self, model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
        from shears.runtime.drop_in.swap import densify_linears

        densify_linears(model)
        nn.Module.to(model, dtype)
        return model

    def is_serializable(self) -> bool:
        """Return that save_pretrained must refuse: a package is copied, or pushed by shears, as it is."""
        return False


def _without_peft(network: nn.Module) -> Any:
    """Return the model in transformers' class, PEFT's layers inside; InputError if they need PEFT's class."""
    from peft import PeftModel

    if not isinstance(network, PeftModel):
        return network
    if getattr(network.active_peft_config, "alora_invocation_tokens", None):
        raise InputError(
            "an adapter that waits for its invocation tokens needs PEFT's class; shears generate has it, or unpack the "
            "package and load both with PEFT"
        )
    return network.get_base_model()


KEPT = ("generation_config", "hf_quantizer", "is_quantized", "name_or_path", "quantization_method")
"""Attributes of the model that transformers sets while it loads."""

if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(PackageConfig)
    register_quantizer(METHOD)(PackageQuantizer)
