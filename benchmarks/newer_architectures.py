"""The native decoder on Gemma 3, Phi-3, Granite, OLMo 2, Qwen3.5: largest difference of logits, and tokens a second.

    python -m benchmarks.newer_architectures logits
    taskset -c 0 python -m benchmarks.newer_architectures speed [--only phi3] [--rounds 3]

`logits` compares tiny random models in fp32 with transformers: 150 tokens at once, and one after the other. `speed`
decodes 32 tokens behind 64, with random weights of real shapes, cut to few layers where a machine beside other work
needs it: half of the weights are zeros. Seconds are those of CPU time, for one thread beside other work. The arms
run one after the other, so that one fits in memory; the median and the range of the rounds after the first are printed.
"""

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tests.runtime.native.decoders import MODELS, OF_THIS_YEAR, backend, covered, expected, text
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.report import environment, parser_of, spread
from shears.checkpoints.packed.layout import NumberFormat
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.loaded_model import source_of_model

ARMS: tuple[NumberFormat | None, ...] = (None, "bf16", "int8", "int4")  # transformers, dense, sparse, sparse
LENGTH, PROMPT, NEW = 150, 64, 32  # tokens
PHI_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0] * 48, "long_factor": [1.0] * 48,
}  # fmt: skip
SHAPES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Gemma 3 270M": ("gemma3_text", 18, {
        "hidden_size": 640, "num_hidden_layers": 18, "intermediate_size": 2048, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "vocab_size": 262144,
        "sliding_window": 512, "max_position_embeddings": 32768,
    }),
    "Phi-4-mini": ("phi3", 32, {
        "hidden_size": 3072, "num_hidden_layers": 2, "intermediate_size": 8192, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 200064, "tie_word_embeddings": True, "rope_parameters": PHI_ROPE,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "pad_token_id": 0,
    }),
    "Granite 3.3 2B": ("granite", 40, {
        "hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 49159, "tie_word_embeddings": True, "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625, "residual_multiplier": 0.22, "logits_scaling": 8.0,
        "max_position_embeddings": 131072,
    }),
    "OLMo 2 1B": ("olmo2", 16, {
        "hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 8192, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 100352, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    }),
    "Qwen3.5 0.8B": ("qwen3_5_text", 24, {
        "hidden_size": 1024, "num_hidden_layers": 8, "intermediate_size": 3584, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248320, "tie_word_embeddings": True,
        "linear_num_key_heads": 16, "linear_num_value_heads": 16, "max_position_embeddings": 32768,
    }),
}  # fmt: skip
"""The architecture, the layers of the real model, and the shape."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=["logits", "speed"])
    parser.add_argument("--only", help="a word of the models' names")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    for line in logits_table() if arguments.what == "logits" else speed_table(arguments.only or "", arguments.rounds):
        print(line, flush=True)


def logits_table() -> Iterator[str]:
    yield "| model | one text | token by token | largest logit |"
    yield "| --- | --- | --- | --- |"
    for name in OF_THIS_YEAR:
        model, tokens = covered(name), text(LENGTH)
        want, runtime = expected(model, tokens), backend(model)
        steps = [runtime.prefill(0, tokens[:1]), *(runtime.step([0], [token])[0] for token in tokens[1:])]
        apart = [np.abs(got - want).max() for got in (runtime.logits(tokens), np.stack(steps))]
        yield f"| {name} ({MODELS[name][0]}) | {apart[0]:.1e} | {apart[1]:.1e} | {np.abs(want).max():.2f} |"


def speed_table(only: str, rounds: int) -> Iterator[str]:
    yield "| shape | layers | transformers bf16 | ours dense bf16 | ours sparse int8 | ours sparse int4 |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, (_, layers, changes) in SHAPES.items():
        if only.lower() not in name.lower():
            continue
        model, cells = random_model(name), []
        for arm in ARMS:
            runtime = backend_of(model, arm)
            seconds = [decoding_seconds(runtime) for _ in range(1 + rounds)][1:]
            cells.append(spread([NEW / each for each in seconds], 1))
            del runtime
        yield f"| {name} | {changes['num_hidden_layers']} of {layers} | {' | '.join(cells)} |"


def random_model(name: str) -> PreTrainedModel:
    """Return a model in bf16, half of whose linears' weights are zeros."""
    kind, _, changes = SHAPES[name]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **changes), trust_remote_code=False
    ).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "_proj" in parameter_name and parameter.ndim == 2:
                parameter.mul_(torch.rand(parameter.shape) < 0.5)
    return model


def backend_of(model: PreTrainedModel, values: NumberFormat | None) -> Backend:
    if values is None:
        return TransformersBackend(model, max_sequences=1)
    source = source_of_model(model, values, sparse=values != "bf16")
    return NativeBackend(source, 1, head=values, max_length=1024, max_sequences=1)


def decoding_seconds(runtime: Backend) -> float:
    tokens = random.Random(0).choices(range(1000), k=PROMPT)
    token = int(runtime.prefill(0, tokens).argmax())
    start = time.process_time()
    for _ in range(NEW):
        token = int(runtime.step([0], [token])[0].argmax())
    seconds = time.process_time() - start
    runtime.drop(0)
    return seconds


if __name__ == "__main__":
    main()
