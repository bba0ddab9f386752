"""What a package's config.json tells transformers: who reads the weights, and PEFT's settings of the adapter.

transformers names the quantization method and the file of the weights in its messages. Where shears
is not imported, it therefore says what to install, and stops.
"""

import copy
from collections.abc import Mapping
from typing import Any

from shears.errors import DISTRIBUTION

METHOD = DISTRIBUTION
QUANTIZATION = "quantization_config"
WEIGHTS = "transformers_weights"
ADAPTER = "adapter_config"
REQUIRED = (
    f"package.safetensors is read by shears; pip install {DISTRIBUTION}, and import shears before from_pretrained"
)


def marked(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a model's config.json as that of its package; `adapter` are PEFT's settings."""
    method = {"quant_method": METHOD} | ({} if adapter is None else {ADAPTER: dict(adapter)})
    return {**config, QUANTIZATION: method, WEIGHTS: REQUIRED}


def unmarked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `marked`."""
    return {key: value for key, value in config.items() if key not in (QUANTIZATION, WEIGHTS)}


def adapter_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return PEFT's settings in a package's config.json; None where it has none."""
    method = config.get(QUANTIZATION)
    settings = method.get(ADAPTER) if isinstance(method, dict) else None
    return settings if isinstance(settings, dict) else None


def plain_config(config: Any) -> Any:
    """Return a copy of transformers' configuration of a package that describes a model in memory."""
    plain = copy.deepcopy(config)
    for key in (QUANTIZATION, WEIGHTS):
        if hasattr(plain, key):
            delattr(plain, key)
    return plain
