"""Format gguf: one model in a file that llama.cpp loads, and the Modelfile of Ollama beside it.

llama.cpp builds its tokenizer from the file's metadata. It knows two kinds here: `gpt2`, BPE on
bytes, whose rule of splitting text has a name; and `llama`, BPE on characters with bytes for the
unknown ones, which merges by the scores of its tokens.

Shapes: O output features, I input features of a linear.
"""

import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.checkpoints.tensor_files import Spec, TensorFiles
from shears.checkpoints.without_code import read_config
from shears.config import ExportConfig
from shears.data.forms import TrainedForm, form_of_record, prompt_in
from shears.errors import InputError
from shears.export.merge import write_merged
from shears.export.peft import recorded_settings, refuse_ranks
from shears.models.ref import ModelRef, end_tokens, load_tokenizer, resolve
from shears.progress import track
from shears.quantization.grid import Q4_0_BLOCK, Q4_0_ZERO, Grid, codes_on_grid
from shears.quantization.training import read_grids
from shears.records import artifacts
from shears.records.artifacts import __version__
from shears.records.paths import ADAPTER_CONFIG, expanded, file_fingerprint
from shears.runtime.loading import generation_settings
from shears.runtime.native.architectures import DecoderPlan, plan_of

logger = logging.getLogger(__name__)
VALUES: Mapping[str, Kind] = {
    "auto": Kind.F16, "fp32": Kind.F32, "bf16": Kind.BF16, "int8": Kind.Q8_0, "int4": Kind.Q4_0,
}  # fmt: skip
"""The type of the matrices in the decoder blocks, by the option `dtype`."""
FILE_TYPES = {Kind.F32: 0, Kind.F16: 1, Kind.Q4_0: 2, Kind.Q8_0: 7, Kind.BF16: 32}  # general.file_type
LAYOUTS: Mapping[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""llama.cpp's architectures by model_type; LLAMA turns rows 2 i and 2 i + 1 of queries and keys."""
HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"
LARGEST_F16 = 65504.0
GPT2 = "of the ByteLevel pre-tokenizer"
DIGITS = "every digit alone"
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (rf"{_START}\p{{N}}{_REST}",): "qwen2",
    (rf"{_START}\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
}
"""llama.cpp's name of a rule (tokenizer.ggml.pre), by the expressions that split a text in turn."""
UNMERGED = -1e6  # score of a token that no merge makes; merges have -1, -2, ...


def write_gguf(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write a model, or an adapter merged into its base, as one GGUF file; return the record."""
    path = work / artifacts.GGUF_FILE
    with _opened(source, work, model, settings) as (ref, record):
        grids: Mapping[str, Grid] = {}
        if record.get("quantize_aware") == "q4_0":
            if settings.dtype not in ("auto", "int4"):
                raise InputError(
                    "an adapter trained with quantize_aware q4_0 has rounded weights, which dtype "
                    f"{settings.dtype} would round again; leave dtype out"
                )
            settings = settings.model_copy(update={"dtype": "int4"})
            grids = {f"{name}.weight": grid for name, grid in read_grids(expanded(source)).items()}
        config = read_config(ref.folder)
        if config.model_type not in LAYOUTS:
            raise InputError(
                f"format gguf supports {', '.join(LAYOUTS)}, got {config.model_type}; "
                "use format merged and then llama.cpp's own converter"
            )
        plan = plan_of(config)
        tokenizer = load_tokenizer(ref)
        with closing(gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[LAYOUTS[config.model_type]])) as writer:
            writer.add_name(Path(str(record["base"])).name)
            _add_settings(writer, config, plan)
            add_tokenizer(writer, tokenizer, plan.vocab_size)
            if isinstance(tokenizer.chat_template, str):
                writer.add_chat_template(tokenizer.chat_template)
            writer.add_file_type(FILE_TYPES[VALUES[settings.dtype]])
            writer.add_quantization_version(2)
            _write_tensors(writer, TensorFiles(ref.folder), config, plan, settings, grids)
        tokens = end_tokens(tokenizer, generation_settings(ref.folder))
        ends = [str(tokenizer.decode([token])) for token in sorted(tokens)]
    artifacts.write_text(work / "Modelfile", modelfile(path.name, ends, form_of_record(record)))
    return {
        **{key: value for key, value in record.items() if key != "fingerprint"},
        "config": recorded_settings(settings),
        "kind": VALUES[settings.dtype].name,
        "file_bytes": path.stat().st_size,
        "file_sha256": file_fingerprint(path),
    }


@contextmanager
def _opened(source: str, work: Path, model: str | None, settings: ExportConfig) -> Iterator[tuple[ModelRef, Any]]:
    folder = expanded(source)
    if any((folder / name).is_file() for name in (artifacts.SEARCH_SPACE, artifacts.SUB_ADAPTER)):
        with tempfile.TemporaryDirectory(dir=work) as merged:
            record = write_merged(source, Path(merged), model, settings.model_copy(update={"format": "merged"}))
            yield ModelRef(Path(merged), source), record
        return
    if (folder / ADAPTER_CONFIG).is_file() or model is not None:
        raise InputError(f"format gguf takes a model or shears' adapter, got {source}; merge it")
    refuse_ranks(settings)
    ref = resolve(source)
    ref.refuse_package("write as GGUF")
    base = {"base": ref.recorded_name, "base_fingerprint": ref.fingerprint}
    yield ref, {"shears_version": __version__, **base, **artifacts.inherited(ref.record)}


def _add_settings(writer: gguf.GGUFWriter, config: Any, plan: DecoderPlan) -> None:
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
    rope = config.rope_parameters
    writer.add_rope_dimension_count(2 * len(plan.inverse_frequencies))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    known = {"default", "linear", "yarn", *(["llama3"] if LAYOUTS[config.model_type] is gguf.MODEL_ARCH.LLAMA else [])}
    if rope["rope_type"] not in known:
        raise InputError(f"llama.cpp lacks {rope['rope_type']} positions for {config.model_type}")
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    if any(layer.window is not None and layer.window < plan.max_positions for layer in plan.layers):
        differs = "so its results differ for texts longer than the window"
        logger.warning("llama.cpp has no sliding window for %s, %s", config.model_type, differs)


def kind_of(name: str, shape: tuple[int, ...], settings: ExportConfig) -> Kind:
    if len(shape) < 2:
        return Kind.F32
    kind = VALUES[settings.dtype]
    is_outside = not name.startswith("model.layers.")
    if is_outside and settings.embedding_dtype != "keep":
        kind = VALUES[settings.embedding_dtype]
    elif is_outside and kind in (Kind.Q8_0, Kind.Q4_0):
        kind = Kind.F16
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def planned_gguf_bytes(specs: Mapping[str, Spec], settings: ExportConfig) -> int:
    """Return the size of a model's weights in format gguf; zeros take as much as others."""
    return sum(_num_bytes(kind_of(name, shape, settings), shape) for name, (_, shape) in specs.items())


def _num_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(block_bytes)


def _write_tensors(
    writer: gguf.GGUFWriter,
    files: TensorFiles,
    config: Any,
    plan: DecoderPlan,
    settings: ExportConfig,
    grids: Mapping[str, Grid],
) -> None:
    """Write every tensor; those of `grids`, by name, get the codes and scales that were trained."""
    layout = LAYOUTS[config.model_type]
    names = _gguf_names(files, layout, len(plan.layers))
    kinds = {name: kind_of(name, files.shape(name), settings) for name in names}
    for name, new in names.items():
        shape = gguf.quant_shape_to_byte_shape(files.shape(name), kinds[name])
        size = _num_bytes(kinds[name], files.shape(name))
        writer.add_tensor_info(new, shape, np.dtype(np.uint8), size, kinds[name])
    factors = None
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, plan.head_dim, 2) / plan.head_dim)
        factors = (plain / plan.inverse_frequencies).float().numpy()
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, new in track(names.items(), "writing GGUF", len(names), "tensors"):
        weight = files.load(name).float()
        heads = {"attn_q": plan.num_heads, "attn_k": plan.num_kv_heads}.get(new.split(".")[-2], 0)
        rows = q4_0_bytes(weight, grids[name]) if name in grids else weight
        if heads and layout is gguf.MODEL_ARCH.LLAMA:
            # rows i and i + D / 2 of each head, which are turned together, become neighbours
            rows = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
        if kinds[name] == Kind.F16 and not weight.abs().max() <= LARGEST_F16:
            raise InputError(f"F16 holds numbers up to 65504, {name} has a larger one; use --dtype bf16")
        writer.write_tensor_data(rows.numpy() if name in grids else gguf.quantize(rows.numpy(), kinds[name]))
    if factors is not None:
        writer.write_tensor_data(factors)


def q4_0_bytes(weight: Tensor, grid: Grid) -> Tensor:
    """Return a weight (O I) on its grid as Q4_0, 18 bytes a block of 32 inputs.

    A block is an fp16 scale, then 16 bytes: byte j holds the codes of inputs j and, above, j + 16.
    """
    if not bool((grid.zeros == Q4_0_ZERO).all()):
        raise InputError("zero points of Q4_0 must be 8, the adapter has others; train it again")
    codes = codes_on_grid(weight, grid.scales, grid.zeros).unflatten(1, (-1, 2, Q4_0_BLOCK // 2))
    scales = grid.scales.contiguous().view(torch.uint8).unflatten(1, (-1, 2))
    return torch.cat([scales, codes[:, :, 0] | codes[:, :, 1] << 4], 2).flatten(1)


def _gguf_names(files: TensorFiles, layout: gguf.MODEL_ARCH, num_layers: int) -> dict[str, str]:
    known = gguf.get_tensor_name_map(layout, num_layers)
    names: dict[str, str] = {}
    for name in files.names:
        is_twin = name == HEAD and EMBEDDINGS in files.names and torch.equal(files.load(HEAD), files.load(EMBEDDINGS))
        if name.endswith(".inv_freq") or is_twin:
            continue
        if (found := known.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
            raise InputError(f"llama.cpp has no name for the weight {name}; use format merged")
        names[name] = str(found)
    return names


def modelfile(file: str, ends: Sequence[str], form: TrainedForm | None = None) -> str:
    """Return the Modelfile, from which Ollama makes a model of a GGUF file in the same folder.

    It asks in the form of a training, greedily; Ollama takes the template of chats from the file.
    """
    lines = [f"FROM ./{file}"]
    if form is not None:
        lines.append("PARAMETER temperature 0")
        template = None if form.rows == "chat" else prompt_in(form, "{{ .Prompt }}")
        quotes = '"' * 3
        for name, text in (("TEMPLATE", template), ("SYSTEM", form.system)):
            if text and quotes not in text:
                lines.append(f"{name} {quotes}{text}{quotes}")
    lines += [f'PARAMETER stop "{end}"' for end in ends if '"' not in end and "\n" not in end]
    return "\n".join(lines) + "\n"


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, num_words: int) -> None:
    """Write a tokenizer, filled up to `num_words` words; InputError if llama.cpp lacks its kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: Any = {"model": {"type": type(tokenizer).__name__}} if backend is None else json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise InputError(f"format gguf supports tokenizers of kind BPE, got {model['type']}; use format merged")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    words = _words(content, num_words)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        ranks = {merge.replace(" ", ""): -rank for rank, merge in reversed([*enumerate(merges, 1)])}
        writer.add_token_scores([float(ranks.get(word, UNMERGED)) for word, _ in words])
        normalizer = content["normalizer"] or {}
        prepends = any(step.get("type") == "Prepend" for step in normalizer.get("normalizers", [normalizer]))
        scheme = (content["pre_tokenizer"] or {}).get("prepend_scheme", "never")
        writer.add_add_space_prefix(prepends or scheme != "never")
    else:
        rules = tuple(_rules(content["pre_tokenizer"]))
        if content["normalizer"] not in (None, {"type": "NFC"}) or rules not in SPLITS:
            raise InputError(
                f"format gguf supports tokenizers that split text like {', '.join(SPLITS.values())}, got another rule "
                f"({' '.join(rules)[:60]}); use format merged"
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(SPLITS[rules])
        writer.add_token_merges(merges)
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([int(kind) for _, kind in words])
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(encoded[-1] == tokenizer.eos_token_id)


def _words(content: Mapping[str, Any], num_words: int) -> list[tuple[str, gguf.TokenType]]:
    model = content["model"]
    has_bytes = bool(model.get("byte_fallback"))
    known: dict[int, tuple[str, gguf.TokenType]] = {}
    for token, number in model["vocab"].items():
        is_byte = has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        known[number] = (token, gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL)
    if (unknown := model.get("unk_token")) in model["vocab"]:
        known[model["vocab"][unknown]] = (unknown, gguf.TokenType.UNKNOWN)
    for added in content["added_tokens"]:
        if added["content"] != unknown or not has_bytes:
            kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
            known[added["id"]] = (added["content"], kind)
    if (largest := max(known, default=0)) >= num_words:
        raise InputError(
            f"format gguf needs an embedding for every token, the tokenizer has the id {largest} "
            f"and the model {num_words} embeddings; resize the model's embeddings"
        )
    return [known.get(each, (f"[PAD{each}]", gguf.TokenType.UNUSED)) for each in range(num_words)]


def _rules(step: Mapping[str, Any] | None) -> Iterator[str]:
    if step is None:
        return
    kind = step["type"]
    if kind == "Sequence":
        for each in step["pretokenizers"]:
            yield from _rules(each)
    elif kind == "ByteLevel":
        yield from [GPT2] * step["use_regex"] + ["add_prefix_space"] * step["add_prefix_space"]
    elif kind == "Digits" and step["individual_digits"]:
        yield DIGITS
    else:
        is_plain = kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]
        yield str(step["pattern"].get("Regex")) if is_plain else str(kind)
