"""Tiny random models of many architectures and an offline tokenizer, for every test.

`tiny_model("llama", seed=0)`, `tiny_tokenizer()`, `save_tiny(folder, "llama")`: nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END = "<|end|>"
VOCABULARY = 257  # the 256 bytes and END, which is both end of sequence and padding
LONGEST = 256
WINDOW = 8  # sliding window of mistral and gemma2; shorter than any calibration sequence here

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
_LLAMA_LIKE = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": LONGEST,
}
_NEOX_LIKE = {key: value for key, value in _LLAMA_LIKE.items() if key not in {"head_dim", "num_key_value_heads"}}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "llama_untied": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": WINDOW}),
    "qwen3": ("qwen3", _LLAMA_LIKE),
    "gemma2": ("gemma2", {**_LLAMA_LIKE, "num_hidden_layers": 3, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gpt_neox": ("gpt_neox", _NEOX_LIKE),
    "opt": (
        "opt",
        {
            **{key: value for key, value in _NEOX_LIKE.items() if key != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
    ),
    "phi": ("phi", _NEOX_LIKE),
    "phi3": ("phi3", _NEOX_LIKE),
    "gpt2": ("gpt2", {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": LONGEST}),
    "bloom": ("bloom", {**_COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def tiny_model(name: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random model of the architecture in evaluation mode; `changes` override its config."""
    kind, settings = CONFIGS[name]
    config = AutoConfig.for_model(kind, **{**settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval()
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer (a token a byte) with a chat template; its end and padding are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, model_max_length=LONGEST)
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}" + END + "{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def save_tiny(folder: Path, name: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Save a tiny model with the tokenizer as an ordinary model folder; return the folder."""
    tiny_model(name, seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
