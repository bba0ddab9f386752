"""A GGUF file of a tiny random Llama or Qwen2 with a byte-level tokenizer, as llama.cpp's converter writes them."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quantize

from tests.tiny import VOCABULARY, tiny_tokenizer

WIDTH, INNER, HEADS, KV_HEADS, BLOCKS = 32, 48, 4, 2, 2


def write_gguf(
    file: Path,
    chat_template: str | None = None,
    merge: str = "! !",
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    without: Collection[str] = (),
    *,
    head: GGMLQuantizationType | None = None,
    noise: np.ndarray | float = 0.0,
) -> Path:
    """Write the file; return its path. `merge` is the one merge of its tokenizer, whose result must be a token.

    Matrices are of the type `kind`, where their rows are whole blocks. `without` names tensors that are left out;
    without `output` the embeddings are tied. With a type `head`, the output is the embeddings once more, in that
    type, times 1 + `noise`.
    """
    tokens = [*sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1]), ("!!", VOCABULARY)]
    writer = GGUFWriter(str(file), architecture)
    _write_metadata(writer, [token for token, _ in tokens], merge)
    if chat_template:
        writer.add_chat_template(chat_template)
    generator = np.random.default_rng(0)
    for name, shape in _shapes(architecture, len(tokens)).items():
        values = generator.standard_normal(shape).astype(np.float32)
        if name.rpartition(".")[0] in without:
            continue
        of_type = kind
        if name == "token_embd.weight":
            embeddings = values
        if name == "output.weight" and head is not None:
            values = (embeddings * (1 + noise)).astype(np.float32)
            of_type = head
        fits = len(shape) == 2 and shape[1] % GGML_QUANT_SIZES[of_type][0] == 0
        writer.add_tensor(name, quantize(values, of_type) if fits else values, raw_dtype=of_type if fits else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _shapes(architecture: str, num_tokens: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name; Qwen2 has biases of queries, keys and values."""
    sides = WIDTH * KV_HEADS // HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (sides, WIDTH), "attn_v": (sides, WIDTH),
              "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
              "ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}  # fmt: skip
    biased = ("attn_q", "attn_k", "attn_v") if architecture == "qwen2" else ()
    of_block = {f"{name}.weight": shape for name, shape in shapes.items()}
    of_block |= {f"{name}.bias": shapes[name][:1] for name in biased}
    blocks = {f"blk.{block}.{name}": shape for block in range(BLOCKS) for name, shape in of_block.items()}
    ends = {"token_embd": (num_tokens, WIDTH), "output": (num_tokens, WIDTH), "output_norm": (WIDTH,)}
    return blocks | {f"{name}.weight": shape for name, shape in ends.items()}


def _write_metadata(writer: GGUFWriter, tokens: list[str], merge: str) -> None:
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([merge])
    writer.add_eos_token_id(VOCABULARY - 1)
