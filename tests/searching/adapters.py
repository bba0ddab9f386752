"""Tiny models of several blocks, and examples of unequal length."""

import json
import random
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from shears.data.examples import IGNORED, Tokenized
from tests.tiny import CONFIGS, MORE_CONFIGS, tiny_model

DEPTHS = ("n_layer", "n_layers", "num_hidden_layers")
PAD = 256


def deep_model(name: str, blocks: int = 4) -> PreTrainedModel:
    """Return a tiny model of so many blocks, where its configuration has a number of them."""
    settings = (CONFIGS | MORE_CONFIGS)[name][1]
    deeper: dict[str, Any] = {depth: blocks for depth in DEPTHS if depth in settings}
    if "layer_types" in settings:
        deeper["layer_types"] = [settings["layer_types"][index % 2] for index in range(blocks)]
    return tiny_model(name, **deeper)


def make_rows(num: int = 12, seed: int = 0) -> list[Tokenized]:
    """Return rows of 6 to 30 tokens, whose last 1 to 5 carry labels."""
    generator, rows = random.Random(seed), []
    for _ in range(num):
        ids = [generator.randrange(256) for _ in range(generator.randint(6, 30))]
        labelled = generator.randint(1, 5)
        rows.append(Tokenized(ids, [IGNORED] * (len(ids) - labelled) + ids[-labelled:]))
    return rows


def rows(path: Path, seed: int) -> str:
    """Write eight rows of sums to a file and return its name."""
    generator = random.Random(seed)
    texts = [
        {"prompt": f"{generator.randint(1, 99)}+1=", "completion": f" {generator.randint(1, 9)}"} for _ in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return str(path)
