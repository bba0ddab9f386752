"""Format gguf: one model in a file that llama.cpp loads, and the Modelfile of Ollama beside it.

The zeros of a sparse model stay zeros, but the file holds them like any other weight.

Shapes: O output features, I input features of a linear.
"""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    RopeScalingType,
    TensorNameMap,
    get_tensor_name_map,
    quant_shape_to_byte_shape,
    quantize,
)
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.checkpoints.configuration import read_config
from shears.checkpoints.gguf_file import read_gguf
from shears.checkpoints.gguf_heads import EMBEDDINGS
from shears.checkpoints.tensor_files import TensorFiles
from shears.checkpoints.tensor_format import Spec
from shears.checkpoints.without_code import load_generation_config
from shears.config import ExportConfig
from shears.errors import InputError
from shears.export.gguf_tokenizer import add_tokenizer
from shears.export.merge import write_merged
from shears.export.modelfile import modelfile
from shears.export.peft import recorded_settings, refuse_ranks
from shears.models.fetching import gguf_named
from shears.models.ref import ModelRef, resolve
from shears.models.tokenizers import end_tokens, load_tokenizer
from shears.progress import track
from shears.records import artifacts
from shears.records.paths import expanded, file_fingerprint
from shears.records.peft_files import ADAPTER_CONFIG
from shears.records.trained_form import form_of_record
from shears.records.version import __version__
from shears.runtime.native.architectures import DecoderPlan, plan_of

logger = logging.getLogger(__name__)
VALUES: Mapping[str, Kind] = {
    "auto": Kind.F16, "fp32": Kind.F32, "bf16": Kind.BF16, "int8": Kind.Q8_0, "int4": Kind.Q4_0,
}  # fmt: skip
"""The type of the matrices in the decoder blocks, by the option `values`."""
FILE_TYPES = {Kind.F32: 0, Kind.F16: 1, Kind.Q4_0: 2, Kind.Q8_0: 7, Kind.BF16: 32}  # general.file_type
OF_WRITER = ("GGUF.", "split.", "general.architecture", "general.file_type", "general.quantization_version",
             "tokenizer.chat_template", "quantize.")  # fmt: skip
"""Beginnings of the keys that are not taken over from another file."""
ROPE_FACTORS = "rope_freqs.weight"
LONGROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
GEMMA3_FULL = 6  # llama.cpp lets every sixth layer of Gemma 3 attend fully
GEMMA3_27B = 62  # the layers of the one Gemma 3 whose queries llama.cpp scales by hidden size over heads
LARGEST_F16 = 65504.0
MB = 10**6
TODO = "take format merged, and llama.cpp's own converter"


@dataclass(frozen=True)
class Layout:
    """An architecture in llama.cpp."""

    architecture: MODEL_ARCH
    neighbours: bool = False
    """Its rotary positions turn rows 2 i and 2 i + 1."""
    has_head: bool = False
    """Its file must hold the head, one that equals the embeddings too."""
    has_windows: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(MODEL_ARCH.LLAMA, neighbours=True),
    "mistral": Layout(MODEL_ARCH.LLAMA, neighbours=True),
    "qwen2": Layout(MODEL_ARCH.QWEN2),
    "qwen3": Layout(MODEL_ARCH.QWEN3),
    "smollm3": Layout(MODEL_ARCH.SMOLLM3, neighbours=True),
    "gemma3_text": Layout(MODEL_ARCH.GEMMA3, has_windows=True),
    "phi3": Layout(MODEL_ARCH.PHI3),
    "granite": Layout(MODEL_ARCH.GRANITE, neighbours=True),
    "olmo2": Layout(MODEL_ARCH.OLMO2, has_head=True),
}
"""By transformers' name of an architecture."""


def write_gguf(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write `source`, a model or an adapter that is merged into its base, as one GGUF file; return the record.

    InputError for an architecture, a tokenizer or rotary positions that llama.cpp lacks, for a
    package, and for another tool's adapter.
    """
    with _opened(source, work, model, settings) as (ref, record):
        config = read_config(ref.folder)
        layout = _layout(config)
        plan = plan_of(config)
        tokenizer = load_tokenizer(ref)
        path = work / artifacts.GGUF_FILE
        with closing(GGUFWriter(path, MODEL_ARCH_NAMES[layout.architecture])) as writer:
            origin = _origin(str(record["base"]), plan)
            if origin is None:
                _add_settings(writer, config, plan, str(record["base"]))
                add_tokenizer(writer, tokenizer, plan.vocab_size)
            else:
                _take_over(writer, origin)
            if tokenizer.chat_template:
                writer.add_chat_template(_templates(tokenizer.chat_template))
            writer.add_file_type(FILE_TYPES[VALUES[settings.values]])
            writer.add_quantization_version(2)
            _write_tensors(writer, TensorFiles(ref.folder), _Tensors(layout, plan, config, settings))
        ends = [str(tokenizer.decode([token])) for token in sorted(_ends(ref, tokenizer))]
    artifacts.write_text(work / "Modelfile", modelfile(artifacts.GGUF_FILE, tokenizer, ends, form_of_record(record)))
    size = path.stat().st_size
    logger.info("%.1f MB, matrices in %s", size / MB, VALUES[settings.values].name)
    return {
        **{key: value for key, value in record.items() if key != "fingerprint"},
        "config": recorded_settings(settings),
        "kind": VALUES[settings.values].name,
        "file_bytes": size,
        "file_sha256": file_fingerprint(path),
        "metadata_of": None if origin is None else origin.name,
    }


@contextmanager
def _opened(source: str, work: Path, model: str | None, settings: ExportConfig) -> Iterator[tuple[ModelRef, Any]]:
    """Yield the model to write and the keys of its record; an adapter is merged in a folder that is removed again."""
    folder = expanded(source)
    if any((folder / name).is_file() for name in (artifacts.SEARCH_SPACE, artifacts.SUB_ADAPTER)):
        with tempfile.TemporaryDirectory(dir=work) as merged:
            record = write_merged(source, Path(merged), model, settings.model_copy(update={"format": "merged"}))
            if "quantize_aware" in record and settings.values == "int4":
                logger.warning("Q4_0 rounds the weights of a quantize_aware training again; values int8 is nearer")
            yield ModelRef(Path(merged), source), record
        return
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"format gguf merges adapters that shears trained, got another's, {source}; merge it first")
    if model is not None:
        raise InputError(f"a model is written as it is, got model={model} beside {source}; leave it out")
    refuse_ranks(settings)
    ref = resolve(source)
    ref.refuse_package("write as GGUF")
    inherited = artifacts.inherited(ref.record)
    base = {"base": ref.recorded_name, "base_fingerprint": ref.fingerprint}
    yield ref, {"shears_version": __version__, **base, **inherited}


def _layout(config: Any) -> Layout:
    if config.model_type not in LAYOUTS:
        raise InputError(f"format gguf writes {', '.join(LAYOUTS)}, got {config.model_type}; {TODO}")
    return LAYOUTS[config.model_type]


def _ends(ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    has_settings = (ref.folder / "generation_config.json").is_file()
    return end_tokens(tokenizer, load_generation_config(ref.folder) if has_settings else None)


def _templates(template: str | dict[str, str]) -> Any:
    """Return a chat template, or several by name, as the gguf package takes them."""
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def _origin(name: str, plan: DecoderPlan) -> Path | None:
    """Return the .gguf file that a model descends from by its records, if it is here and has as many words."""
    for _ in range(len(artifacts.RECORDS)):
        if (named := gguf_named(name)) is not None:
            known = {tensor.name: tensor.shape for tensor in read_gguf(named[0]).tensors}
            return named[0] if known.get(EMBEDDINGS) == (plan.vocab_size, plan.hidden_size) else None
        folder = expanded(name)
        record = ModelRef(folder, name).record if folder.is_dir() else {}
        if not (name := str(record.get("model") or record.get("base") or "")):
            return None
    return None


def _take_over(writer: GGUFWriter, origin: Path) -> None:
    """Copy the metadata of the file that the model was made from."""
    for key, field in GGUFReader(origin).fields.items():
        if not key.startswith(OF_WRITER):
            is_array = field.types[0] == GGUFValueType.ARRAY
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if is_array else None)


def _add_settings(writer: GGUFWriter, config: Any, plan: DecoderPlan, name: str) -> None:
    """Write the sizes and the rotary positions of a model; InputError for what llama.cpp does differently."""
    writer.add_name(Path(name).name)
    writer.add_context_length(plan.max_positions)
    writer.add_embedding_length(plan.hidden_size)
    writer.add_block_count(len(plan.layers))
    writer.add_feed_forward_length(plan.intermediate_size)
    writer.add_head_count(plan.num_heads)
    writer.add_head_count_kv(plan.num_kv_heads)
    writer.add_key_length(plan.head_dim)
    writer.add_value_length(plan.head_dim)
    writer.add_layer_norm_rms_eps(plan.eps)
    writer.add_vocab_size(plan.vocab_size)
    rope = _rope(config)
    writer.add_rope_dimension_count(2 * len(plan.inverse_frequencies))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    _add_scaling(writer, rope, plan)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "gemma3_text":
        _add_gemma3(writer, config, plan)
    rotates = [layer.rotates for layer in plan.layers]
    expected = [config.model_type != "smollm3" or (index + 1) % 4 > 0 for index in range(len(rotates))]
    if rotates != expected:
        raise InputError(f"llama.cpp leaves every fourth layer of smollm3 without positions, here others are; {TODO}")
    has_windows = any(layer.window is not None and layer.window < plan.max_positions for layer in plan.layers)
    if has_windows and not _layout(config).has_windows:
        logger.warning("llama.cpp has no window of attention for %s: longer texts differ", config.model_type)


def _rope(config: Any) -> Mapping[str, Any]:
    """Return the rotary positions of the layers that attend fully."""
    rope: Mapping[str, Any] = config.rope_parameters.get("full_attention", config.rope_parameters)
    return rope


def _add_gemma3(writer: GGUFWriter, config: Any, plan: DecoderPlan) -> None:
    local = config.rope_parameters["sliding_attention"]
    of_heads = config.hidden_size / plan.num_heads if len(plan.layers) == GEMMA3_27B else plan.head_dim
    windows = [(index + 1) % GEMMA3_FULL > 0 for index in range(len(plan.layers))]
    if windows != [layer.window is not None for layer in plan.layers] or local["rope_type"] != "default":
        raise InputError(f"llama.cpp lets every sixth layer of Gemma 3 attend fully, here others do; {TODO}")
    if config.query_pre_attn_scalar != of_heads:
        raise InputError(
            f"llama.cpp scales queries of this Gemma 3 by {of_heads:g}, got query_pre_attn_scalar "
            f"{config.query_pre_attn_scalar}; {TODO}"
        )
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(float(local["rope_theta"]))


def _add_scaling(writer: GGUFWriter, rope: Mapping[str, Any], plan: DecoderPlan) -> None:
    kind = rope["rope_type"]
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(plan.rope_scale)
    if kind not in ("linear", "yarn"):
        return  # default; llama3 and longrope are tensors of factors
    writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


class _Tensors:
    """Names, types and values of a model's tensors in a GGUF file."""

    def __init__(self, layout: Layout, plan: DecoderPlan, config: Any, settings: ExportConfig) -> None:
        self._layout = layout
        self._plan = plan
        self._settings = settings
        self._names: TensorNameMap = get_tensor_name_map(layout.architecture, len(plan.layers))
        self.factors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
        rope = _rope(config)
        if rope["rope_type"] == "longrope":
            if layout.architecture is not MODEL_ARCH.PHI3:
                raise InputError(
                    f"llama.cpp has rotary positions longrope in phi3 alone, got {config.model_type}; {TODO}"
                )
            self.factors = {new: np.array(rope[key], np.float32) for key, new in LONGROPE_FACTORS.items()}
        if rope["rope_type"] == "llama3":
            if layout.architecture is not MODEL_ARCH.LLAMA:
                raise InputError(
                    f"llama.cpp has rotary positions llama3 in llama alone, got {config.model_type}; {TODO}"
                )
            plain = rope["rope_theta"] ** -(torch.arange(0, plan.head_dim, 2) / plan.head_dim)
            self.factors = {ROPE_FACTORS: (plain / plan.inverse_frequencies).float().numpy()}

    def sources(self, files: TensorFiles) -> dict[str, str]:
        """Return the names of the model's tensors by those in the GGUF file."""
        sources = {self.name(name): name for name in _saved_once(files)}
        if self._layout.has_head:
            sources.setdefault("output.weight", "model.embed_tokens.weight")
        return sources

    def name(self, name: str) -> str:
        """Return a tensor's name in the GGUF file; InputError for one that llama.cpp does not know."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(f"llama.cpp must know every weight, it has none for {name}; {TODO}")
        return str(found)

    def kind(self, name: str, shape: tuple[int, ...]) -> Kind:
        """Return the type of a tensor by its name in the GGUF file."""
        return kind_of(name, shape, self._settings)

    def values(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight (O I) or bias (O) in fp32, the rows of queries and keys as llama.cpp turns them."""
        heads = {"attn_q": self._plan.num_heads, "attn_k": self._plan.num_kv_heads}.get(name.split(".")[-2], 0)
        weight = weight.float()
        if name.endswith("_norm.weight"):
            return weight + self._plan.norms.offset
        if not (heads and self._layout.neighbours):
            return weight
        halves = weight.unflatten(0, (heads, 2, self._plan.head_dim // 2))  # turned as pairs (i, i + D / 2)
        turned: Tensor = halves.transpose(1, 2).flatten(0, 2)
        return turned.contiguous()


def kind_of(name: str, shape: tuple[int, ...], settings: ExportConfig) -> Kind:
    """Return the type of a tensor by its name in the GGUF file or in transformers' files."""
    if len(shape) < 2:
        return Kind.F32
    kind = VALUES[settings.values]
    is_outside = not name.startswith(("blk.", "model.layers."))
    if is_outside and settings.embeddings != "keep":
        kind = VALUES[settings.embeddings]
    elif is_outside and kind in (Kind.Q8_0, Kind.Q4_0):
        kind = Kind.F16
    return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def planned_gguf_bytes(specs: Mapping[str, Spec], settings: ExportConfig) -> int:
    """Return the size of a GGUF file's tensors, by those of the model's files."""
    return sum(_num_bytes(kind_of(name, shape, settings), shape) for name, (_, shape) in specs.items())


def _num_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(block_bytes)


def _write_tensors(writer: GGUFWriter, files: TensorFiles, tensors: _Tensors) -> None:
    """Write the tensors, one in memory at a time; InputError for a weight that F16 cannot hold."""
    sources = tensors.sources(files)
    kinds = {new: tensors.kind(new, files.shape(name)) for new, name in sources.items()}
    for new, name in sources.items():
        shape = files.shape(name)
        of_bytes = np.dtype(np.uint8)
        size = _num_bytes(kinds[new], shape)
        writer.add_tensor_info(new, quant_shape_to_byte_shape(shape, kinds[new]), of_bytes, size, kinds[new])
    for new, factors in tensors.factors.items():
        writer.add_tensor_info(new, factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for new, name in track(sources.items(), "writing GGUF", len(sources), "tensors"):
        weight = tensors.values(new, files.load(name))
        if kinds[new] == Kind.F16 and not weight.abs().max() <= LARGEST_F16:
            raise InputError(f"F16 holds numbers up to 65504, {name} has a larger one; take --values bf16")
        writer.write_tensor_data(quantize(weight.numpy(), kinds[new]))
    for factors in tensors.factors.values():
        writer.write_tensor_data(factors)


def _saved_once(files: TensorFiles) -> list[str]:
    """Return the tensors' names without a head that equals the embeddings, and without computed frequencies."""
    head = "lm_head.weight"
    embeddings = "model.embed_tokens.weight"
    names = [name for name in files.names if not name.endswith(".inv_freq")]
    if head in names and embeddings in names and torch.equal(files.load(head), files.load(embeddings)):
        names.remove(head)
    return names
