"""Write a sparse model, and a sub-adapter beside it, as one package: packed weights, the adapter un-merged."""

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
from shears.export.merge import merge_adapter
from shears.export.packing import Packing, choose_form
from shears.export.sub_adapter import origin, read_sub_adapter, refuse_ranks
from shears.export.tensors import misfit
from shears.models.blocks import weight_oi
from shears.models.load import save_tokenizer
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import (
    MERGED,
    PACKAGE,
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
from shears.records.cards.card import write_card
from shears.records.folders import working_folder
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.version import __version__

logger = logging.getLogger(__name__)
MANY = 0.01  # share of weights that are -0.0 from which the log says so
OF_MERGED = ("super_adapter_fingerprint", "template", "data", "data_sha256", "ranks", TRAINED_BEFORE)
"""Of a model's record, what stays true of its package: how the adapter that was merged into it came to be."""
PROMPT = "prompt_embeddings"  # PEFT's name in adapters that are no weights of the model
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Source(NamedTuple):
    """What goes into a package: a model, an adapter's tensors and configuration, where both come from."""

    model: ModelRef
    adapter: Mapping[str, Tensor]
    adapter_config: Mapping[str, Any] | None
    origin: Mapping[str, Any]


def export_package(source: str, output: Path, model: str | None, settings: ExportConfig) -> Path:
    """Write a package of a model, a super-adapter or a sub-adapter; return the folder `output`.

    InputError for ranks that are not there to choose, another base than the adapter's, and numbers int8 cannot hold.
    """
    with working_folder(output, {"source": source, **as_data(settings)}, resume=None) as work:
        with _opened(source, work, model, settings) as found:
            figures = _write(found, work, settings)
        write_json(work / PACKAGE, {**found.origin, **figures, "fingerprint": weights_fingerprint(work)})
        write_card(work)
    _log(output, figures)
    return output


@contextmanager
def _opened(source: str, work: Path, model: str | None, settings: ExportConfig) -> Iterator[Source]:
    """Yield what is to be packed; an adapter that was trained masked is merged first, which is exact."""
    folder = Path(source)
    if not any((folder / name).is_file() for name in (SEARCH_SPACE, SUB_ADAPTER)):
        yield _plain(source, model, settings)
        return
    chosen = read_sub_adapter(folder, settings)
    base = checked_base(folder, dict(chosen.record), model)
    if not chosen.masked:
        trained = {key: chosen.record[key] for key in ("alpha", "max_rank") if key in chosen.record}
        from_where = {**trained, **origin(base, chosen, settings)}
        yield Source(base, chosen.tensors, chosen.config, from_where)
        return
    with tempfile.TemporaryDirectory(dir=work) as other:  # gone with the rest, should this process be killed
        merging = settings.model_copy(update={"format": "merged-sparse"})
        merged = merge_adapter(folder, Path(other) / "merged", model, merging)
        record = read_json(merged / MERGED)
        config = as_data(settings) | {"ranks": record["config"]["ranks"]}
        yield Source(resolve(merged), {}, None, {**record, "config": config})


def _plain(source: str, model: str | None, settings: ExportConfig) -> Source:
    """Return a model without an adapter, or an adapter of another tool with the base that it names."""
    refuse_ranks(settings)
    folder, adapter, config = Path(source), dict[str, Tensor](), None
    name = source
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        adapter, config = _foreign(folder)
        name = model or _named_base(folder, config)
    elif model is not None:
        raise InputError(f"a model is packed as it is, got model={model} beside {source}; leave it out")
    base = resolve(name)
    known = {key: base.record[key] for key in OF_MERGED if key in base.record}
    return Source(base, adapter, config, {
        "shears_version": __version__, "config": as_data(settings), "base": base.recorded_name,
        "base_fingerprint": base.fingerprint, **(known if config is None else inherited(base.record)),
    })  # fmt: skip


def _named_base(folder: Path, config: Mapping[str, Any]) -> str:
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{folder / ADAPTER_CONFIG} must name its base model, got {base!r:.40}; give it with --model")
    return base


def _foreign(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    """Write the package's files but the record; return its figures."""
    folder = source.model.folder
    if source.model.is_package:
        raise InputError(f"a package is made of a model folder, got the package {folder}; shears unpack it first")
    config, files = read_config(folder), TensorFiles(folder)
    form = choose_form(files, settings)
    empty = empty_model(folder, config, torch.float32)
    tensors = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if wrong := misfit(source.adapter, _shapes(empty), tensors):
        raise InputError(f"an adapter must fit the model that it is packed with, {wrong} in {folder}; name its base")
    packing = Packing(files, form, _transposed(empty), getattr(config.get_text_config(), "vocab_size", None))
    fingerprint = packing.write(work / PACKAGE_FILE, source.adapter)
    _copy_configs(source, work, DTYPE_NAMES[form.rest] if form.rest else None)
    save_tokenizer(source.model, work)
    return {"values": form.values, "package_fingerprint": fingerprint, **_figures(packing, work, source)}


def _shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of every linear by name."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    weights = {name: weight_oi(linear) for name, linear in linears.items()}
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}


def _transposed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Conv1D)]


def _copy_configs(source: Source, work: Path, dtype: str | None) -> None:
    """Copy the model's configuration, its dtype changed where the weights' is, and the adapter's."""
    config = read_json(source.model.folder / "config.json")
    for key in ("dtype", "torch_dtype"):
        if dtype is not None and (key in config or key == "dtype"):
            config[key] = dtype
    write_json(work / "config.json", config)
    generation = source.model.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, work / "generation_config.json")
    if source.adapter_config is not None:
        write_json(work / ADAPTER_CONFIG, source.adapter_config)


def _figures(packing: Packing, work: Path, source: Source) -> dict[str, Any]:
    """Return sizes in bytes, each beside what a dense folder of the same dtype takes, sparsity and rounding error."""
    sums, total = packing.sums, (work / PACKAGE_FILE).stat().st_size
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in source.adapter.values())
    model, dense = total - adapter, sums.dense_bytes + sums.rest_bytes
    return {
        "num_linears": len(packing.packed),
        "sparsity": sums.zeros / max(sums.weights, 1),
        "negative_zeros": sums.negative_zeros / max(sums.weights, 1),
        "rounding": sums.rounding,
        "bytes": {
            "linears": sums.bytes, "linears_dense": sums.dense_bytes, "model": model, "model_dense": dense,
            "adapter": adapter,
        },
        "ratio": {"linears": sums.bytes / max(sums.dense_bytes, 1), "model": model / max(dense, 1)},
    }  # fmt: skip


def _log(output: Path, figures: Mapping[str, Any]) -> None:
    sizes, ratio = figures["bytes"], figures["ratio"]
    logger.info(
        "packed %s: %d linears, %.1f %% zeros, %s values, %.1f MB, %.3f of dense; the model %.1f MB, %.3f of dense",
        output, figures["num_linears"], 100 * figures["sparsity"], figures["values"], sizes["linears"] / 1e6,
        ratio["linears"], sizes["model"] / 1e6, ratio["model"],
    )  # fmt: skip
    if figures["negative_zeros"] > MANY:
        share = 100 * figures["negative_zeros"]
        logger.warning("%.1f %% of the weights are -0.0 and take room; --negative-zeros drop makes them zeros", share)
    if figures["rounding"] != 0.0:
        shown = "no number" if figures["rounding"] is None else f"{100 * figures['rounding']:.3f} %"
        logger.warning(
            "%s values differ from the model's: relative error %s (root mean square)", figures["values"], shown
        )
