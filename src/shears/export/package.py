"""Format package: a sparse model with packed weights and an un-merged adapter in one file.

`unpack` is the inverse: a package becomes an ordinary model folder and an ordinary PEFT adapter.
"""

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.configuration import read_config
from shears.checkpoints.conversion import empty_model
from shears.checkpoints.packed.file import PACKAGE_FILE, Package, read_package
from shears.checkpoints.packed.index import PLAIN_NAMES
from shears.checkpoints.packed.marks import marked, unmarked
from shears.checkpoints.tensor_files import INDEX, SINGLE, TensorFiles
from shears.checkpoints.tensor_format import Spec, StoredTensor, as_bytes, write_at, write_layout
from shears.config import ExportConfig
from shears.errors import InputError, first_line
from shears.export.calibrated import Inputs, write_calibrated
from shears.export.merge import write_merged
from shears.export.packing import Packing, choose_form
from shears.export.peft import origin, read_sub_adapter, refuse_ranks
from shears.models.blocks import LoraUpdate, linears, weight_oi
from shears.models.devices import DTYPES
from shears.models.load import answer_greedily, copy_configs
from shears.models.ref import ModelRef, checked_base, resolve
from shears.models.tokenizers import save_tokenizer
from shears.quantization.grid import Grid
from shears.records import artifacts
from shears.records.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded, own_file
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, A, B, linear_of
from shears.records.trained_form import template_of_record
from shears.records.version import __version__

logger = logging.getLogger(__name__)
OF_MERGED = (
    "super_adapter_fingerprint", "template", artifacts.FORM, "data", "data_sha256", "ranks", artifacts.TRAINED_BEFORE,
)  # fmt: skip
"""Keys of a model's record that its package's record repeats: the origin of a merged adapter."""
OF_PACKAGE = ("base", "base_fingerprint", "values", artifacts.TRAINED_BEFORE)
"""Keys of a package's record that the unpacked model's record repeats."""
OF_ADAPTER = (
    "shears_version", "config", "super_adapter_fingerprint", "ranks_fingerprint", "template", artifacts.FORM, "data",
    "data_sha256", "alpha", "sparse_adapter", "max_rank", "ranks",
)  # fmt: skip
"""Keys of a package's record that the unpacked adapter's record repeats."""
WRAPPED = ".base_layer."  # PEFT's name for a linear below a layer of its own
Shape = tuple[int, ...]
SHARD = 5_000_000_000  # bytes of a file; transformers writes 50 GB, but hubs prefer smaller files


class Source(NamedTuple):
    """The parts of a package: a model, an adapter with its PEFT configuration, keys of the record."""

    model: ModelRef
    adapter: Mapping[str, Tensor]
    adapter_config: Mapping[str, Any] | None
    origin: Mapping[str, Any]
    grids: Mapping[str, Grid] = MappingProxyType({})
    """The grids that the model's weights lie on, by linear; the others are then not packed."""
    updates: Mapping[str, LoraUpdate] = MappingProxyType({})
    """The adapter's, by linear; empty for another tool's adapter."""


def write_package(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write a package of a model, a super-adapter or a sub-adapter; return its record.

    InputError for `ranks` where there is no choice of ranks, for another base than the adapter's,
    and for weights that int8 or int4 cannot hold.
    """
    with _opened(source, work, model, settings) as parts:
        figures = _write(parts, work, settings)
    _log(figures)
    return {**parts.origin, **figures, "fingerprint": artifacts.weights_fingerprint(work)}


@contextmanager
def _opened(source: str, work: Path, model: str | None, settings: ExportConfig) -> Iterator[Source]:
    """Yield the parts of the package; an adapter that was trained masked is merged, which is exact."""
    folder = Path(source)
    if not any((folder / name).is_file() for name in (artifacts.SEARCH_SPACE, artifacts.SUB_ADAPTER)):
        yield _foreign_source(source, model, settings)
        return
    chosen = read_sub_adapter(folder, settings)
    if chosen.grids and settings.values not in ("auto", "int4"):
        raise InputError(
            f"values must be int4 for an adapter trained with quantize_aware int4, whose weights are whole numbers of "
            f"its scales, got {settings.values}, which would round them again; leave values out"
        )
    if chosen.grids and settings.calibration is not None:
        raise InputError(
            f"calibration must be left out for an adapter trained with quantize_aware int4, whose weights are rounded "
            f"already, got {settings.calibration}; leave it out"
        )
    if chosen.masked:
        with tempfile.TemporaryDirectory(dir=work) as merged:  # the next run empties `work`
            record = write_merged(source, Path(merged), model, settings)
            yield Source(resolve(merged), {}, None, record, chosen.grids)
        return
    base = checked_base(folder, dict(chosen.record), model)
    trained = {key: chosen.record[key] for key in ("alpha", "max_rank") if key in chosen.record}
    record = {**trained, **origin(base, chosen, settings)}
    yield Source(base, chosen.tensors, chosen.config, record, updates=chosen.updates)


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
        "config": artifacts.as_data(settings),
        "base": base.recorded_name,
        "base_fingerprint": base.fingerprint,
        **(merged_before if config is None else artifacts.inherited(base.record)),
    }
    return Source(base, adapter, config, record)


def _named_base(folder: Path, config: Mapping[str, Any]) -> str:
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder / ADAPTER_CONFIG} must name its base model, got {base!r:.40}; give it with --model")
    return base


def _read_foreign_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return another tool's tensors and configuration; InputError for unsupported adapters."""
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
    if "prompt_embeddings" in tensors:  # of prompt tuning, which changes no weights
        raise InputError(f"a package holds adapters of weights, {folder} puts tokens before the text; pack its base")
    return tensors, artifacts.read_object(folder / ADAPTER_CONFIG)


def _write(source: Source, work: Path, settings: ExportConfig) -> dict[str, Any]:
    """Write the package's files except the record; return the figures of the record."""
    folder = source.model.folder
    if source.model.is_package:
        raise InputError(f"a package is made of a model folder, got the package {folder}; shears unpack it first")
    config = read_config(folder)
    files = TensorFiles(folder)
    specs = {name: (files.dtype(name), files.shape(name)) for name in files.names}
    if source.grids:
        settings = settings.model_copy(update={"values": "int4"})
    form = choose_form(specs, settings, getattr(config.get_text_config(), "vocab_size", None))
    if settings.values == "auto" and form.rest is not None:
        logger.info("values auto: bf16, to which the model's numbers are rounded; --values fp32 keeps every bit")
    empty = empty_model(folder, config, torch.float32)
    if problem := _misfit(source.adapter, empty):
        raise InputError(f"an adapter must fit the model that it is packed with, {problem} in {folder}; name its base")
    transposed = [name for name, module in empty.named_modules() if isinstance(module, Conv1D)]
    packing = Packing(files, form, transposed, source.grids)
    path = work / PACKAGE_FILE
    if settings.calibration is None:
        fingerprint = packing.write(path, source.adapter)
        calibrated: dict[str, Any] = {}
    else:
        if source.adapter and not source.updates:
            logger.warning("the adapter of another tool is left out while the inputs are measured")
        inputs = Inputs(source.model, source.updates, settings, template_of_record(source.origin))
        fingerprint, calibrated = write_calibrated(inputs, packing, path, source.adapter)
    _copy_configs(source, work, form.rest)
    save_tokenizer(source.model, work)
    return {
        "values": form.values, "package_fingerprint": fingerprint, **calibrated, **_figures(packing, work, source)
    }  # fmt: skip


def _misfit(adapter: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Return why an adapter does not fit a model; None where it fits.

    Checked are A and B of linears, and tensors named like one of the model's. PEFT itself places
    other tensors, such as A and B of experts and convolutions.
    """
    shapes = {name: tuple(weight_oi(linear).shape) for name, linear in linears(model).items()}
    parameters = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = (_tensor_misfit(name, tuple(tensor.shape), shapes, parameters) for name, tensor in adapter.items())
    return next((problem for problem in problems if problem), None)


def _tensor_misfit(
    name: str, shape: Shape, linears: Mapping[str, Shape], parameters: Mapping[str, Shape]
) -> str | None:
    """Return why a tensor of an adapter does not fit; `linears` are shapes (O I)."""
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


def _copy_configs(source: Source, work: Path, dtype: torch.dtype | None) -> None:
    """Write the configuration of model and adapter; `dtype` is that of converted weights."""
    config = artifacts.read_json(source.model.folder / "config.json")
    for key in ("dtype", "torch_dtype"):
        if dtype is not None and (key in config or key == "dtype"):
            config[key] = str(dtype).removeprefix("torch.")
    copy_configs(source.model.folder, work, marked(config, source.adapter_config))
    if artifacts.FORM in source.origin:
        answer_greedily(work)


def _figures(packing: Packing, work: Path, source: Source) -> dict[str, Any]:
    """Return sparsity, rounding error, and the sizes in bytes, packed and dense.

    `model` is the whole file, adapter included; dense are the model alone, with weights of the
    dtype of the package's own dense tensors: fp32 beside fp32 values, else bf16.
    """
    sums = packing.sums
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in source.adapter.values())
    model = (work / PACKAGE_FILE).stat().st_size
    dense = sums.dense_bytes + sums.rest_bytes
    sizes = {"linears": sums.bytes, "linears_dense": sums.dense_bytes, "model": model, "model_dense": dense}
    return {
        "num_linears": len(packing.packed),
        "sparsity": sums.zeros / max(sums.weights, 1),
        "negative_zeros": sums.negative_zeros / max(sums.weights, 1),
        "rounding": sums.rounding,
        "bytes": {**sizes, "adapter": adapter},
        "ratio": {"linears": sums.bytes / max(sums.dense_bytes, 1), "model": model / max(dense, 1)},
    }


def _log(figures: Mapping[str, Any]) -> None:
    zeros = f"{figures['num_linears']} linears, {100 * figures['sparsity']:.1f} % zeros, {figures['values']} values"
    megabytes = {part: size / 1e6 for part, size in figures["bytes"].items()}
    sizes = {part: f"{megabytes[part]:.1f} MB, {ratio:.3f} of dense" for part, ratio in figures["ratio"].items()}
    adapter = f", the adapter's {megabytes['adapter']:.1f} among them" if megabytes["adapter"] else ""
    logger.info("packed %s, %s; the file %s%s", zeros, sizes["linears"], sizes["model"], adapter)
    if figures["negative_zeros"] > 0.01:
        share = 100 * figures["negative_zeros"]
        logger.warning(
            "%.1f %% of the weights are -0.0 and take room; add 0.0 to the weights to make them zeros", share
        )
    if figures["rounding"] != 0.0:
        error = "is not finite" if figures["rounding"] is None else f"{100 * figures['rounding']:.3f} %"
        logger.warning(
            "%s values differ from the model's: relative error %s (root mean square)", figures["values"], error
        )


def unpack(package: str | Path, output: str | Path) -> Path:
    """Write `output`/model and, if the package has one, `output`/adapter; return `output`.

    fp32 and bf16 values come out bit for bit as they were packed, int8 and int4 values as the
    nearest numbers of the model's dtype. Each folder gets a record and a card. InputError for a
    folder that is no whole package.
    """
    folder = expanded(package)
    output = expanded(output)
    record = artifacts.read_record(folder, artifacts.PACKAGE)
    opened = read_package(folder, verify="fingerprint" not in record)  # covers every byte
    with working_folder(output, {"package": str(folder)}, resume=None) as work:
        _write_model(opened, folder, work / "model")
        _write_record(work / "model", record, has_adapter=bool(opened.index.adapter))
        if opened.index.adapter:
            _write_adapter(opened, work, record)
    logger.info("unpacked %s into %s", folder, output)
    return output


def _write_model(package: Package, folder: Path, output: Path) -> None:
    output.mkdir()
    config = artifacts.read_object(own_file(folder / "config.json"))
    named = (dtype for dtype in DTYPES.values() if str(dtype) == f"torch.{config.get('dtype')}")
    specs = package.model_specs(quantized=next(named, torch.bfloat16))
    write_shards(output, specs, ((name, tensor.to(specs[name][0])) for name, tensor in package.model_tensors()))
    copy_configs(folder, output, unmarked(config))
    save_tokenizer(resolve(folder), output)


def _write_record(model: Path, record: Mapping[str, Any], has_adapter: bool) -> None:
    """Write the model's record and card; the record names an adapter that was merged."""
    keys = OF_PACKAGE if has_adapter else (*OF_PACKAGE, *OF_MERGED)
    kept = {key: record[key] for key in keys if key in record}
    kept["fingerprint"] = artifacts.weights_fingerprint(model)
    artifacts.write_json(model / artifacts.UNPACKED, {"shears_version": __version__, **kept})
    write_card(model)


def write_shards(
    folder: Path, specs: dict[str, Spec], tensors: Iterable[tuple[str, Tensor]], size: int = SHARD
) -> None:
    """Write tensors, in the order of `specs`, to files of at most `size` bytes or one tensor."""
    split = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda spec: math.prod(spec[1]) * spec[0].itemsize,
        filename_pattern=SINGLE.replace(".", "{suffix}."),
        max_shard_size=size,
    )
    places: dict[str, StoredTensor] = {}
    for file, names in split.filename_to_tensors.items():
        layout = write_layout(folder / file, {name: specs[name] for name in names}, {"format": "pt"})
        places |= zip(names, layout, strict=True)
    for name, tensor in tensors:
        with places[name].path.open("r+b", buffering=0) as stream:
            write_at(stream, places[name].offset, as_bytes(tensor.contiguous()))
    if split.is_sharded:
        artifacts.write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _write_adapter(package: Package, work: Path, record: Mapping[str, Any]) -> None:
    """Write the PEFT adapter; one of shears gets the record of a sub-adapter and a card."""
    adapter = work / "adapter"
    adapter.mkdir()
    save_file(package.adapter(), adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    artifacts.write_json(adapter / ADAPTER_CONFIG, package.adapter_config())
    if "ranks" in record:
        kept = {key: record[key] for key in OF_ADAPTER if key in record}
        kept["base"] = "model"
        kept["base_fingerprint"] = artifacts.weights_fingerprint(work / "model")
        kept["fingerprint"] = artifacts.weights_fingerprint(adapter)
        artifacts.write_json(adapter / artifacts.SUB_ADAPTER, kept)
        write_card(adapter)
