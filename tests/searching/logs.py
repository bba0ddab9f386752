"""Training logs made up from a loss that is known: what the tests of the surrogate share."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shears.adapt.space import SearchSpace
from shears.searching.surrogate import Pairs


class Planted(NamedTuple):
    """Pairs, and the effect of one more rank of each group on the loss that was planted in them."""

    pairs: Pairs
    slopes: np.ndarray


def planted(
    space: SearchSpace,
    num_examples: int = 400,
    *,
    epochs: int = 3,
    batch: int = 8,
    effect: float = 0.05,
    noise: float = 0.1,
    seed: int = 0,
    scale: float = 1.0,
) -> Planted:
    """Every example has a difficulty and a length, every step a level that falls; ranks are drawn by example."""
    generator = np.random.default_rng(seed)
    examples = np.concatenate([generator.permutation(num_examples) for _ in range(epochs)])
    steps = np.arange(len(examples)) // batch + 1
    allowed = [np.array(ranks) for ranks in space.ranks.values()]
    configs = np.column_stack([generator.choice(ranks, len(examples)) for ranks in allowed])
    slopes = effect * generator.standard_normal(len(allowed)) / np.array([ranks.std() or 1.0 for ranks in allowed])
    tokens = generator.integers(3, 30, num_examples)[examples]
    difficulty = generator.normal(0.0, 0.5, num_examples)[examples] - 0.2 * np.log(tokens)
    level = 3.0 * np.exp(-steps / steps.max() * 3) + generator.normal(0.0, 0.2, steps.max() + 1)[steps]
    scatter = noise * generator.standard_normal(len(examples)) / np.sqrt(tokens / tokens.mean())
    losses = 3 + scale * (configs @ slopes) + difficulty + level + scatter
    return Planted(Pairs(configs, losses, tokens.astype(np.float64), steps, examples), slopes)


def by_step(space: SearchSpace, num_steps: int, effect: float, noise: float, seed: int = 0) -> Planted:
    """One pair a step, as under uniform sampling."""
    found = planted(space, num_steps, epochs=1, batch=1, effect=effect, noise=noise, seed=seed)
    generator, steps = np.random.default_rng(seed + 1), found.pairs.steps
    losses = 2 + found.pairs.configs @ found.slopes + 3 * np.exp(-3 * steps / num_steps)
    losses = losses + noise * generator.standard_normal(num_steps)
    whole = np.full(num_steps, -1)
    return Planted(Pairs(found.pairs.configs, losses, found.pairs.tokens, steps, whole), found.slopes)


def lines(pairs: Pairs) -> list[dict[str, Any]]:
    """The log's lines of pairs by example."""
    found = []
    for step in np.unique(pairs.steps).tolist():
        rows = np.flatnonzero(pairs.steps == step).tolist()
        examples = [
            {
                "example": int(pairs.examples[row]),
                "loss": float(pairs.losses[row]),
                "tokens": int(pairs.tokens[row]),
                "ranks": pairs.configs[row].tolist(),
            }
            for row in rows
        ]
        found.append({"step": step, "loss": 1.0, "tokens": 99, "learning_rate": 0.1, "examples": examples})
    return found


def write(folder: Path, content: list[dict[str, Any]], tail: str = "") -> Path:
    """Write a log; return its folder."""
    text = "".join(json.dumps(line) + "\n" for line in content)
    (folder / "training_log.jsonl").write_text(text + tail)
    return folder
