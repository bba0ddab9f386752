"""A GGUF file of a tiny random Llama with a byte-level tokenizer, as llama.cpp's converter writes them."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from tests.tiny import VOCABULARY, tiny_tokenizer

WIDTH, INNER, HEADS, BLOCKS = 32, 48, 4, 2


def write_gguf(file: Path, chat_template: str | None = None, merge: str = "! !") -> Path:
    """Write the file; return its path. `merge` is the one merge of its tokenizer, whose result must be a token."""
    tokens = [*sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1]), ("!!", VOCABULARY)]
    writer = GGUFWriter(str(file), "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([merge])
    writer.add_eos_token_id(VOCABULARY - 1)
    if chat_template:
        writer.add_chat_template(chat_template)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH),
              "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
              "ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}  # fmt: skip
    tensors = {f"blk.{block}.{name}": shape for block in range(BLOCKS) for name, shape in shapes.items()}
    ends = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    generator = np.random.default_rng(0)
    for name, shape in (tensors | ends).items():
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
