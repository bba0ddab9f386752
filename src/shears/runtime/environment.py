"""What the kernels run on: versions, processor, instruction sets, and speeds measured now."""

import platform
from typing import Any

import torch

from shears.records.artifacts import __version__
from shears.records.timing import processor, versions
from shears.runtime.native import kernels_available

TIMED_PRODUCTS = 15  # products timed per kind; the median counts


def environment() -> dict[str, Any]:
    """Return versions, processor, instruction sets and speeds as plain data; takes seconds.

    `speeds` are picoseconds per weight of one token's product by a weight in memory, on all threads;
    half of a sparse weight are zeros, which count. It is empty without the C++ extension.
    """
    data: dict[str, Any] = {
        "versions": {"shears": __version__, **versions()},
        "processor": processor(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_sets": {},
        "speeds": [],
    }
    if not kernels_available():
        return data
    from shears.runtime.native import _native
    from shears.runtime.native.tuning import CODES, tune, weight_bytes

    pool = _native.Pool(torch.get_num_threads())
    for values, code in CODES.items():
        seconds = {}
        for kind, sparse in (("sparse", True), ("dense", False)):
            tune(values, sparse)
            seconds[kind] = 1e12 * _native.measure_speed(code, sparse, 1, weight_bytes(), TIMED_PRODUCTS, pool)[0]
        data["speeds"].append({"values": values, **seconds})
    return {**data, "instruction_sets": _native.features()}
