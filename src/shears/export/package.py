"""Formats package and unpacked: packed weights and an un-merged adapter in one file, and back."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.package_file import PACKAGE_FILE, QUANTIZATION, WEIGHTS, Package, marked
from shears.checkpoints.tensor_files import SINGLE, TensorFile, TensorFiles
from shears.checkpoints.without_code import empty_model, read_config
from shears.config import ExportConfig
from shears.data.forms import template_of_record
from shears.errors import InputError, reading
from shears.export.calibrated import round_calibrated
from shears.export.merge import write_merged
from shears.export.packing import Packing, choose_form
from shears.export.peft import origin, read_sub_adapter, refuse_ranks
from shears.models.blocks import LoraUpdate
from shears.models.devices import DTYPES
from shears.models.load import answer_greedily, copy_configs
from shears.models.ref import ModelRef, checked_base, resolve, save_tokenizer
from shears.quantization.grid import Grid
from shears.records import artifacts
from shears.records.artifacts import __version__
from shears.records.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.publishing import write_card

OF_MERGED = (
    "super_adapter_fingerprint", "template", artifacts.FORM, "data", "data_sha256", "ranks", artifacts.TRAINED_BEFORE,
)  # fmt: skip
"""Keys of a model's record that its package's record repeats: the origin of a merged adapter."""
OF_PACKAGE = ("base", "base_fingerprint", "values", artifacts.TRAINED_BEFORE)  # of unpacked models
OF_ADAPTER = (
    "shears_version", "config", "super_adapter_fingerprint", "ranks_fingerprint", "template",
    artifacts.FORM, "data", "data_sha256", "alpha", "sparse_adapter", "max_rank", "ranks",
)  # fmt: skip
"""Keys of a package's record that the unpacked adapter's record repeats."""


class PackageParts(NamedTuple):
    """A package's parts: a model, an adapter with its PEFT configuration, keys of the record."""

    model: ModelRef
    adapter: Mapping[str, Tensor]
    adapter_config: Mapping[str, Any] | None
    origin: Mapping[str, Any]
    grids: Mapping[str, Grid] = MappingProxyType({})  # by linear; the others are then not packed
    updates: Mapping[str, LoraUpdate] = MappingProxyType({})  # not of another tool's adapter


def write_package(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    with _opened(source, work, model, settings) as parts:
        parts.model.refuse_package("pack")
        figures = _write(parts, work, settings)
    return {**parts.origin, **figures, "fingerprint": artifacts.weights_fingerprint(work)}


@contextmanager
def _opened(source: str, work: Path, model: str | None, settings: ExportConfig) -> Iterator[PackageParts]:
    """Yield the parts of the package; an adapter trained masked is merged, which is exact."""
    folder = Path(source)
    if not any((folder / one).is_file() for one in (artifacts.SEARCH_SPACE, artifacts.SUB_ADAPTER)):
        yield _foreign_source(source, model, settings)
        return
    chosen = read_sub_adapter(folder, settings)
    if chosen.record.get("quantize_aware") == "q4_0":
        raise InputError(
            f"a package holds int4 in blocks of 128 inputs, {source} was trained for Q4_0 "
            "with blocks of 32; use --format gguf, or train with quantize_aware int4"
        )
    if chosen.grids and (settings.dtype not in ("auto", "int4") or settings.calibration is not None):
        raise InputError(
            "an adapter trained with quantize_aware int4 has rounded weights, which dtype or "
            "calibration would round again; leave both out"
        )
    if chosen.masked:
        with tempfile.TemporaryDirectory(dir=work) as merged:  # the next run empties `work`
            record = write_merged(source, Path(merged), model, settings)
            yield PackageParts(resolve(merged), {}, None, record, chosen.grids)
        return
    base = checked_base(folder, dict(chosen.record), model)
    trained = {key: chosen.record[key] for key in ("alpha", "max_rank") if key in chosen.record}
    record = {**trained, **origin(base, chosen, settings)}
    yield PackageParts(base, chosen.tensors, chosen.config, record, updates=chosen.updates)


def _foreign_source(source: str, model: str | None, settings: ExportConfig) -> PackageParts:
    refuse_ranks(settings)
    folder = Path(source)
    adapter: dict[str, Tensor] = {}
    config = None
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        with reading(folder):
            adapter = load_file(folder / ADAPTER_WEIGHTS)
            config = artifacts.read_object(folder / ADAPTER_CONFIG)
            model = model or str(config["base_model_name_or_path"])
    elif model is not None:
        raise InputError(f"a model without an adapter needs no option model, got model={model}; leave it out")
    base = resolve(model or source)
    merged_before = {key: base.record[key] for key in OF_MERGED if key in base.record}
    record = {
        "shears_version": __version__,
        "config": artifacts.as_data(settings),
        "base": base.recorded_name,
        "base_fingerprint": base.fingerprint,
        **(merged_before if config is None else artifacts.inherited(base.record)),
    }
    return PackageParts(base, adapter, config, record)


def _write(source: PackageParts, work: Path, settings: ExportConfig) -> dict[str, Any]:
    folder = source.model.folder
    config = read_config(folder)
    files = TensorFiles(folder)
    if source.grids:
        settings = settings.model_copy(update={"dtype": "int4"})
    form = choose_form(files.specs, settings, getattr(config.get_text_config(), "vocab_size", None))
    modules = empty_model(folder, config).named_modules()
    packing = Packing(files, form, [name for name, module in modules if isinstance(module, Conv1D)], source.grids)
    rounding: dict[str, Any] = {}
    packing.begin(work / PACKAGE_FILE, source.adapter)
    if settings.calibration is not None:
        template = template_of_record(source.origin)
        rounding = round_calibrated(source.model, source.updates, settings, template, packing, work)
    fingerprint = packing.finish()
    own = artifacts.read_object(folder / "config.json")
    for key in ("dtype", "torch_dtype"):
        if form.rest is not None and (key in own or key == "dtype"):
            own[key] = str(form.rest).removeprefix("torch.")
    copy_configs(folder, work, marked(own, source.adapter_config))
    if artifacts.FORM in source.origin:
        answer_greedily(work)
    save_tokenizer(source.model, work)
    sizes = {
        **packing.sizes(),
        "model": (work / PACKAGE_FILE).stat().st_size,
        "adapter": sum(tensor.nbytes for tensor in source.adapter.values()),
    }
    return {
        "values": form.values,
        "package_fingerprint": fingerprint,
        **rounding,
        "num_linears": len(packing.packed),
        "sparsity": packing.sparsity,
        "bytes": sizes,
        "ratio": {key: sizes[key] / max(sizes[f"{key}_dense"], 1) for key in ("linears", "model")},
    }


def write_unpacked(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write a package as a model folder, and any adapter as `work`/adapter; return the record.

    fp32 and bf16 values come out bit for bit as they were packed, int8 and int4 values as the
    nearest numbers of the model's dtype.
    """
    refuse_ranks(settings)
    ref = ModelRef(Path(source), source)
    record = artifacts.read_record(ref.folder, artifacts.PACKAGE, fingerprint=ref.fingerprint)
    package = ref.package
    config = artifacts.read_object(ref.folder / "config.json")
    named = (dtype for dtype in DTYPES.values() if str(dtype) == f"torch.{config.get('dtype')}")
    file = TensorFile(work / SINGLE, package.model_specs(quantized=next(named, torch.bfloat16)), {"format": "pt"})
    for name, tensor in package.model_tensors():
        file.put(name, tensor.to(file.specs[name][0]))
    copy_configs(ref.folder, work, {key: value for key, value in config.items() if key not in (QUANTIZATION, WEIGHTS)})
    save_tokenizer(ref, work)
    fingerprint = artifacts.weights_fingerprint(work)
    if package.index.adapter:
        _write_adapter(package, work / "adapter", record, fingerprint)
    keys = OF_PACKAGE if package.index.adapter else (*OF_PACKAGE, *OF_MERGED)
    kept = {key: record[key] for key in keys if key in record}
    return {"shears_version": __version__, **kept, "fingerprint": fingerprint}


def _write_adapter(package: Package, folder: Path, record: Mapping[str, Any], base_fingerprint: str) -> None:
    folder.mkdir()
    save_file(package.adapter(), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    artifacts.write_json(folder / ADAPTER_CONFIG, package.adapter_config())
    if "ranks" in record:
        kept = {key: record[key] for key in OF_ADAPTER if key in record}
        own = {"base": "..", "base_fingerprint": base_fingerprint, "fingerprint": artifacts.weights_fingerprint(folder)}
        artifacts.write_json(folder / artifacts.SUB_ADAPTER, kept | own)
        write_card(folder)
