"""Pruning holds the embeddings, one block and what the method needs beside it: never the whole model."""

import json
import random
from pathlib import Path

import pytest
from benchmarks.memory import peak_memory

from tests.tiny import tiny_model

MB = 1_000_000
HIDDEN, KEYS, VOCABULARY, BLOCKS = 512, 256, 2048, 32
SHAPE = {
    "hidden_size": HIDDEN,
    "head_dim": 64,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
}
NUM_SEQUENCES, LENGTH = 8, 64
# bytes of the model's parts, all fp32, and of the hidden states
BLOCK = 4 * (5 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 2 * HIDDEN)
EMBEDDINGS = 4 * (2 * VOCABULARY * HIDDEN + HIDDEN)  # with the head and the last norm
STATES = 4 * NUM_SEQUENCES * LENGTH * HIDDEN
ALLOWANCE = {  # 16 MiB is the piece in which files are copied; ADMM factors moments (I x I) in fp64
    "wanda": 18 * MB,
    "admm": 18 * MB + 8 * 8 * HIDDEN * HIDDEN,
}
SETUP = """
import torch
torch.set_num_threads(1)
from shears.sparsity.sparsify import sparsify
def prune(name):
    model = {folder!r} + "/" + name
    sparsify(model, {out!r} + "/" + name, calibration=model + ".jsonl", precision="fp32", device="cpu",
             num_samples={samples}, sequence_length={length}, method={method!r}, skip={skip!r})
prune("tiny")  # loads what is loaded late
"""


def write_ids(file: Path, vocabulary: int) -> Path:
    """Write rows of random token ids, for a model without a tokenizer."""
    generator = random.Random(0)
    rows = [[generator.randrange(vocabulary) for _ in range(LENGTH)] for _ in range(NUM_SEQUENCES)]
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random model of 200 MB, beside it its calibration and a tiny model with its own."""
    folder = tmp_path_factory.mktemp("models")
    for name, shape in (("big", SHAPE), ("tiny", {"vocab_size": 300})):
        model = tiny_model("llama", **shape, tie_word_embeddings=False)
        model.save_pretrained(folder / name, max_shard_size="12MB")
        write_ids(folder / f"{name}.jsonl", shape["vocab_size"])
    return folder / "big"


@pytest.mark.parametrize(
    ("method", "skip"),
    [
        ("wanda", []),
        pytest.param("admm", ["(?!.*k_proj$).*"], marks=pytest.mark.slow),
        pytest.param("admm", [], marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_the_embeddings_two_blocks_and_the_hidden_states(
    method: str, skip: list[str], big: Path, tmp_path: Path
) -> None:
    whole = sum(path.stat().st_size for path in big.glob("*.safetensors"))
    assert whole > 200 * MB
    folders = {"folder": str(big.parent), "out": str(tmp_path)}
    setup = SETUP.format(**folders, samples=NUM_SEQUENCES, length=LENGTH, method=method, skip=skip)
    usage = peak_memory(setup, "prune('big')")
    assert EMBEDDINGS < usage.peak < 2 * BLOCK + EMBEDDINGS + STATES + ALLOWANCE[method]
    assert usage.peak < whole / 3
