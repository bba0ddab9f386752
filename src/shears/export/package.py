"""Format package: a sparse model with packed weights, and a sub-adapter un-merged beside it, in one file."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.adapt.load import checked_base
from shears.checkpoints.conversion import empty_model, read_config
from shears.checkpoints.packed.file import PACKAGE_FILE
from shears.checkpoints.packed.index import PLAIN_NAMES
from shears.checkpoints.tensor_files import TensorFiles
from shears.config import ExportConfig
from shears.errors import InputError, first_line
from shears.export.merge import write_merged_sparse
from shears.export.packing import Packing, choose_form
from shears.export.sub_adapter import origin, read_sub_adapter, refuse_ranks
from shears.models.blocks import weight_oi
from shears.models.load import save_tokenizer
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import (
    SEARCH_SPACE,
    SUB_ADAPTER,
    TRAINED_BEFORE,
    as_data,
    inherited,
    read_json,
    read_object,
    weights_fingerprint,
    write_json,
)
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, A, B, linear_of
from shears.records.version import __version__

logger = logging.getLogger(__name__)
MANY = 0.01  # share of weights that are -0.0; a larger one is logged
OF_MERGED = ("super_adapter_fingerprint", "template", "data", "data_sha256", "ranks", TRAINED_BEFORE)
"""Keys of a model's record that its package's record repeats: the origin of the adapter that was merged into it."""
PROMPT = "prompt_embeddings"  # PEFT's name for prompt tuning, whose adapters change no weights
WRAPPED = ".base_layer."  # PEFT's name for a linear below a layer of its own
Shape = tuple[int, ...]
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Source(NamedTuple):
    """What goes into a package: a model, an adapter with PEFT's configuration, the record's first keys."""

    model: ModelRef
    adapter: Mapping[str, Tensor]
    adapter_config: Mapping[str, Any] | None
    origin: Mapping[str, Any]


def write_package(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write a package of a model, a super-adapter or a sub-adapter; return its record.

    InputError for `ranks` where there is no choice of ranks, for another base than the adapter's, and for weights that
    int8 cannot hold.
    """
    with _opened(source, work, model, settings) as parts:
        figures = _write(parts, work, settings)
    _log(figures)
    return {**parts.origin, **figures, "fingerprint": weights_fingerprint(work)}


@contextmanager
def _opened(source: str, work: Path, model: str | None, settings: ExportConfig) -> Iterator[Source]:
    """Yield the parts of the package; an adapter that was trained masked is merged into its base, which is exact."""
    folder = Path(source)
    if not any((folder / name).is_file() for name in (SEARCH_SPACE, SUB_ADAPTER)):
        yield _foreign_source(source, model, settings)
        return
    chosen = read_sub_adapter(folder, settings)
    if chosen.masked:
        with tempfile.TemporaryDirectory(dir=work) as merged:  # a kill leaves it in `work`, which the next run empties
            record = write_merged_sparse(source, Path(merged), model, settings)
            yield Source(resolve(merged), {}, None, record)
        return
    base = checked_base(folder, dict(chosen.record), model)
    trained = {key: chosen.record[key] for key in ("alpha", "max_rank") if key in chosen.record}
    yield Source(base, chosen.tensors, chosen.config, {**trained, **origin(base, chosen, settings)})


def _foreign_source(source: str, model: str | None, settings: ExportConfig) -> Source:
    """Return a model without an adapter, or another tool's adapter with its base model."""
    refuse_ranks(settings)
    folder = Path(source)
    adapter: dict[str, Tensor] = {}
    config = None
    name = source
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        adapter, config = _read_foreign_adapter(folder)
        name = model or _named_base(folder, config)
    elif model is not None:
        raise InputError(f"a model is packed as it is, got model={model} beside {source}; leave it out")
    base = resolve(name)
    merged_before = {key: base.record[key] for key in OF_MERGED if key in base.record}
    record = {
        "shears_version": __version__,
        "config": as_data(settings),
        "base": base.recorded_name,
        "base_fingerprint": base.fingerprint,
        **(merged_before if config is None else inherited(base.record)),
    }
    return Source(base, adapter, config, record)


def _named_base(folder: Path, config: Mapping[str, Any]) -> str:
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder / ADAPTER_CONFIG} must name its base model, got {base!r:.40}; give it with --model")
    return base


def _read_foreign_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return another tool's tensors and configuration; InputError for what a package does not hold."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"an adapter must hold {ADAPTER_WEIGHTS}, {folder} does not; save it as safetensors")
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise InputError(
            f"{folder / ADAPTER_WEIGHTS} must be a whole file of safetensors, got: {first_line(error)}; save it again"
        ) from None
    if odd := [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in PLAIN_NAMES]:
        raise InputError(f"a package holds plain numbers, {odd[0]}; save the adapter of {folder} in another dtype")
    if PROMPT in tensors:
        raise InputError(f"a package holds adapters of weights, {folder} puts tokens before the text; pack its base")
    return tensors, read_object(folder / ADAPTER_CONFIG)


def _write(source: Source, work: Path, settings: ExportConfig) -> dict[str, Any]:
    """Write the package's files except the record; return the figures of the record."""
    folder = source.model.folder
    if source.model.is_package:
        raise InputError(f"a package is made of a model folder, got the package {folder}; shears unpack it first")
    config = read_config(folder)
    files = TensorFiles(folder)
    form = choose_form(files, settings)
    empty = empty_model(folder, config, torch.float32)
    if problem := _misfit(source.adapter, empty):
        raise InputError(f"an adapter must fit the model that it is packed with, {problem} in {folder}; name its base")
    transposed = [name for name, module in empty.named_modules() if isinstance(module, Conv1D)]
    packing = Packing(files, form, transposed, getattr(config.get_text_config(), "vocab_size", None))
    fingerprint = packing.write(work / PACKAGE_FILE, source.adapter)
    _copy_configs(source, work, DTYPE_NAMES[form.rest] if form.rest else None)
    save_tokenizer(source.model, work)
    return {"values": form.values, "package_fingerprint": fingerprint, **_figures(packing, work, source)}


def _misfit(adapter: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Return why an adapter does not fit a model; None where it fits.

    Checked are A and B of linears, and tensors named like one of the model's. PEFT itself places other tensors, such as
    A and B of experts and convolutions.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    shapes = {name: tuple(weight_oi(linear).shape) for name, linear in linears.items()}
    parameters = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = (_tensor_misfit(name, tuple(tensor.shape), shapes, parameters) for name, tensor in adapter.items())
    return next((problem for problem in problems if problem), None)


def _tensor_misfit(
    name: str, shape: Shape, linears: Mapping[str, Shape], parameters: Mapping[str, Shape]
) -> str | None:
    """Return why one tensor of an adapter does not fit; `linears` are the shapes (O I) of linears."""
    if not name.endswith((A, B)):
        parameter = name.removeprefix(PREFIX).replace(WRAPPED, ".")
        expected = parameters.get(parameter, shape)
        return None if expected == shape else f"{parameter} is {expected}, {name} is {shape}"
    linear = linear_of(name)
    if linear not in linears:
        module = f"{linear}.".replace(WRAPPED, ".")
        return None if any(known.startswith(module) for known in parameters) else f"{linear} is not there"
    outputs, inputs = linears[linear]
    fits = len(shape) == 2 and (shape[1] == inputs if name.endswith(A) else shape[0] == outputs)
    return None if fits else f"{linear} has {outputs} outputs and {inputs} inputs, {name} is {shape}"


def _copy_configs(source: Source, work: Path, dtype: str | None) -> None:
    """Copy the configurations of model and adapter; `dtype` replaces the model's where the weights were converted."""
    config = read_json(source.model.folder / "config.json")
    for key in ("dtype", "torch_dtype"):
        if dtype is not None and (key in config or key == "dtype"):
            config[key] = dtype
    write_json(work / "config.json", config)
    generation = source.model.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, work / generation.name)
    if source.adapter_config is not None:
        write_json(work / ADAPTER_CONFIG, source.adapter_config)


def _figures(packing: Packing, work: Path, source: Source) -> dict[str, Any]:
    """Return sparsity, rounding error and sizes in bytes, packed and in a dense folder of the same dtype."""
    sums = packing.sums
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in source.adapter.values())
    model = (work / PACKAGE_FILE).stat().st_size - adapter
    dense = sums.dense_bytes + sums.rest_bytes
    return {
        "num_linears": len(packing.packed),
        "sparsity": sums.zeros / max(sums.weights, 1),
        "negative_zeros": sums.negative_zeros / max(sums.weights, 1),
        "rounding": sums.rounding,
        "bytes": {
            "linears": sums.bytes,
            "linears_dense": sums.dense_bytes,
            "model": model,
            "model_dense": dense,
            "adapter": adapter,
        },
        "ratio": {"linears": sums.bytes / max(sums.dense_bytes, 1), "model": model / max(dense, 1)},
    }


def _log(figures: Mapping[str, Any]) -> None:
    sizes = figures["bytes"]
    ratio = figures["ratio"]
    logger.info(
        "packed %d linears, %.1f %% zeros, %s values, %.1f MB, %.3f of dense; the model %.1f MB, %.3f of dense",
        figures["num_linears"],
        100 * figures["sparsity"],
        figures["values"],
        sizes["linears"] / 1e6,
        ratio["linears"],
        sizes["model"] / 1e6,
        ratio["model"],
    )
    if figures["negative_zeros"] > MANY:
        share = 100 * figures["negative_zeros"]
        logger.warning("%.1f %% of the weights are -0.0 and take room; --negative-zeros drop makes them zeros", share)
    if figures["rounding"] != 0.0:
        error = "is not finite" if figures["rounding"] is None else f"{100 * figures['rounding']:.3f} %"
        logger.warning(
            "%s values differ from the model's: relative error %s (root mean square)", figures["values"], error
        )
