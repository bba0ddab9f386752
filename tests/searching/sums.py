"""Rows of sums to train and search on."""

import json
import random
from pathlib import Path


def rows(path: Path, seed: int) -> str:
    """Write eight rows of sums to a file and return its name."""
    generator = random.Random(seed)
    texts = [
        {"prompt": f"{generator.randint(1, 99)}+1=", "completion": f" {generator.randint(1, 9)}"} for _ in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return str(path)
