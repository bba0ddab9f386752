"""Tiny random models of many architectures and an offline tokenizer, for every test.

`tiny_model("llama", seed=0)`, `tiny_tokenizer()`, `save_tiny(folder, "llama")`: nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
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
_MOE = {**_LLAMA_LIKE, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT_LIKE = {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LONGEST}
_MAMBA = {**_COMMON, "hidden_size": 32, "num_hidden_layers": 2}
_SSD = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 8}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK = {
    **_MOE,
    **_LATENT,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
_SHARED_BLOCK = {
    **_NEOX_LIKE,
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    "mamba_d_state": 8,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MORE_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    # dense attention
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "gemma": ("gemma", _LLAMA_LIKE),
    "gemma3_text": ("gemma3_text", {**_LLAMA_LIKE, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "olmo2": ("olmo2", _NEOX_LIKE),
    "smollm3": ("smollm3", {**_NEOX_LIKE, "num_key_value_heads": 2}),
    "granite": ("granite", {**_NEOX_LIKE, "num_key_value_heads": 2, "residual_multiplier": 0.5}),
    "starcoder2": ("starcoder2", {**_NEOX_LIKE, "num_key_value_heads": 2, "sliding_window": WINDOW}),
    "cohere": ("cohere", {**_NEOX_LIKE, "num_key_value_heads": 2}),
    "stablelm": ("stablelm", {**_NEOX_LIKE, "num_key_value_heads": 2, "use_parallel_residual": True}),
    "glm4": ("glm4", _LLAMA_LIKE),
    "falcon": ("falcon", {**_NEOX_LIKE, "ffn_hidden_size": 48}),
    "falcon_new": (
        "falcon",
        {**_NEOX_LIKE, "ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_alibi": ("falcon", {**_NEOX_LIKE, "ffn_hidden_size": 48, "parallel_attn": False, "alibi": True}),
    "mpt": ("mpt", {**_COMMON, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": LONGEST}),
    "gptj": ("gptj", {**_GPT_LIKE, "n_inner": 48, "rotary_dim": 4}),
    "codegen": ("codegen", {**_GPT_LIKE, "n_inner": 48, "rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", {**_GPT_LIKE, "n_inner": 48}),
    "gpt_neo": (
        "gpt_neo",
        {
            **_COMMON,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": LONGEST,
        },
    ),
    # mixtures of experts
    "mixtral": ("mixtral", _MOE),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "decoder_sparse_step": 2}),
    "gpt_oss": ("gpt_oss", {**_MOE, "sliding_window": WINDOW}),
    "olmoe": ("olmoe", _MOE),
    "granitemoe": ("granitemoe", {key: value for key, value in _MOE.items() if key != "head_dim"}),
    "deepseek_v2": ("deepseek_v2", _DEEPSEEK),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "head_dim": 8}),
    "jetmoe": ("jetmoe", {**_MOE, "kv_channels": 8}),
    "llama4_text": ("llama4_text", {**_MOE, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2}),
    # state-space models and hybrids
    "mamba": ("mamba", {**_MAMBA, "state_size": 8}),
    "mamba2": ("mamba2", {**_MAMBA, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8}),
    "falcon_mamba": ("falcon_mamba", {**_MAMBA, "state_size": 8}),
    "rwkv": ("rwkv", {**_MAMBA, "context_length": LONGEST}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**_NEOX_LIKE, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW},
    ),
    "jamba": (
        "jamba",
        {**_MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    "bamba": ("bamba", {**_LLAMA_LIKE, **_SSD, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {**_LLAMA_LIKE, **_SSD, "mamba_d_ssm": 64}),
    "zamba": ("zamba", {**_SHARED_BLOCK, "num_key_value_heads": 4}),
    "zamba2": ("zamba2", {**_SHARED_BLOCK, "n_mamba_heads": 4, "chunk_size": 8}),
    "nemotron_h": (
        "nemotron_h",
        {
            **_MOE,
            "layers_block_type": ["mamba", "attention", "moe", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**_MOE, **_SSD, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    "lfm2": ("lfm2", {**_LLAMA_LIKE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "qwen3_next": ("qwen3_next", {**_MOE, **_DELTA, "shared_expert_intermediate_size": 24}),
    "qwen3_5_text": ("qwen3_5_text", {**_LLAMA_LIKE, **_DELTA}),
}


def tiny_model(name: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random model of the architecture in evaluation mode; `changes` override its config."""
    kind, settings = CONFIGS[name] if name in CONFIGS else MORE_CONFIGS[name]
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


def starting_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts a start of sequence in front, as Llama's and Gemma's do."""
    core = tiny_tokenizer().backend_tokenizer
    core.add_special_tokens(["<s>"])
    start = ("<s>", core.token_to_id("<s>"))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=END, pad_token=END)


def save_tiny(folder: Path, name: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Save a tiny model with the tokenizer as an ordinary model folder; return the folder."""
    tiny_model(name, seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
