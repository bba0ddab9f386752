"""Who is measured beside a package: the same model dense, by our own kernels and by transformers."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import NumberFormat
from shears.config.serve import BackendConfig, RunningConfig
from shears.models.load import load_model
from shears.models.ref import ModelRef
from shears.runtime.engine.backend import Backend
from shears.runtime.engine.transformers_backend import TransformersBackend
from shears.runtime.loading import package_backend
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.available import kernels_available

TRANSFORMERS, TUNED = "dense, transformers", "dense, transformers, oneDNN off"


@dataclass(frozen=True)
class Contestant:
    """A way to run a model; `tuned` keeps torch off oneDNN, whose products of one row are slow on some CPUs."""

    name: str
    backend: Backend
    tuned: bool = False

    def running(self) -> AbstractContextManager[Any]:
        """Return what it runs in."""
        return _without_onednn() if self.tuned else nullcontext()

    @property
    def memory_bytes(self) -> int:
        """Return the bytes of its weights, and of its caches where the backend knows them."""
        found = self.backend.describe()
        return int(str(found["memory_bytes"])) + int(str(found.get("mapped_bytes", 0)))


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # torch speaks of GPUs that are not here
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def contestants(model: ModelRef, wanted: BackendConfig, against: str | None) -> list[Contestant]:
    """Return the package first, then the dense model in as many ways as there are; all without other sequences' memory.

    InputError for what is no package.
    """
    values = values_of(model.package)
    package = package_backend(model, RunningConfig(backend=wanted.backend))
    name = f"package ({values}, {package.describe()['name']})"
    dense = load_model(against or model, "fp32" if values == "fp32" else "bf16", "cpu")
    backend = TransformersBackend(dense, max_sequences=1)
    others = [Contestant(TRANSFORMERS, backend), Contestant(TUNED, backend, tuned=True)]
    return [Contestant(name, package), *_our_dense(dense, values), *others]


def values_of(package: Package) -> NumberFormat:
    """Return the number format of most of a package's packed weights; of its other numbers where none is packed."""
    index = package.index
    entries = [entry.values for entry in index.packed.values()]
    if entries:
        return max(sorted(set(entries)), key=entries.count)
    sizes = Counter[str]()
    for entry in index.dense.values():
        sizes[entry.dtype] += math.prod(entry.shape)
    return "fp32" if sizes.most_common(1)[0][0] == "fp32" else "bf16"


def _our_dense(dense: PreTrainedModel, values: NumberFormat) -> Iterator[Contestant]:
    """Yield the dense model in our kernels, as its own numbers and as the package's; nothing for one not covered."""
    if not kernels_available():
        return
    from shears.runtime.native.decoder import Limits, NativeBackend
    from shears.runtime.native.model_source import source_of_model

    try:
        longest = plan_of(dense.config).max_positions
    except NotCoveredError:
        return
    own: NumberFormat = "fp32" if dense.dtype == torch.float32 else "bf16"
    for numbers in dict.fromkeys((own, values)):
        source = source_of_model(dense, numbers, sparse=False)
        backend = NativeBackend(source, Limits(longest, 1, torch.get_num_threads()))
        yield Contestant(f"dense, our kernels ({numbers})", backend)
