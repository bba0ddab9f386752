"""Tokens a second with and without guesses from the answer's own text, on the same prompts in turns.

    python -m benchmarks.lookup PACKAGE [--gsm8k test.jsonl] [--prompts 8]

Processor time of one thread, greedy. The answers must be the same.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from shears.runtime import load
from shears.runtime.generation import batch
from shears.runtime.generation.engine import Engine

FIELDS = ("name", "city", "product", "order", "phone", "problem")
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": list(FIELDS),
    "properties": {name: {"type": "string"} for name in FIELDS},
}
CHAT = (
    "What is the capital of France and what is it known for?",
    "Write a short poem about the sea.",
    "How do I reverse a list in Python?",
    "Explain why the sky is blue.",
    "Give me three tips for sleeping better.",
    "What is a hash table?",
    "Write a bash loop over files.",
    "Tell me a joke about cats.",
)


def tickets(count: int) -> list[str]:
    """Return made-up tickets whose fields the model shall copy."""
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        name = f"{draw.choice(('Ann', 'Bob', 'Carla', 'Farid', 'Noor'))} {draw.choice(('Meyer', 'Silva', 'Novak'))}"
        city, product = draw.choice(("Berlin", "Oslo", "Turin", "Porto")), draw.choice(("laptop", "printer", "router"))
        problem = draw.choice(("does not start", "has a broken screen", f"shows error {draw.randint(100, 999)}"))
        order, phone = draw.randint(10000, 99999), draw.randint(100000, 999999)
        text = f"My name is {name} from {city}. The {product} of order ORD-{order} {problem}. Call me at +49 {phone}."
        texts.append(f"Extract {', '.join(FIELDS)} of the ticket as one JSON object. Ticket: {text}")
    return texts


def timed(engine: Engine, prompt: str, rows: int, options: Mapping[str, Any]) -> tuple[float, Sequence[int]]:
    """Return the processor time of an answer, and its tokens."""
    with mock.patch.object(batch, "MOST_ROWS", rows):
        start = time.process_time()
        tokens = engine.answer(prompt, temperature=0.0, **options).tokens
        return time.process_time() - start, tokens


def main() -> None:
    """Print a line for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = load(args.package, threads=1)
    print(engine.backend.describe())
    tasks: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
        "ticket to JSON": (tickets(args.prompts), {"max_new_tokens": 150}),
        "with its schema": (tickets(args.prompts), {"max_new_tokens": 150, "json_schema": SCHEMA}),
        "chat": (CHAT[: args.prompts], {"max_new_tokens": 200}),
    }
    if args.gsm8k:
        lines = args.gsm8k.read_text().splitlines()[: args.prompts]
        tasks["GSM8K"] = ([json.loads(line)["question"] for line in lines], {"max_new_tokens": 200})
    engine.answer("hello", max_new_tokens=8)
    for name, (prompts, options) in tasks.items():
        ratios, same, total, seconds = [], 0, 0, {1: 0.0, batch.MOST_ROWS: 0.0}
        for number, prompt in enumerate(prompts):
            turns = sorted(seconds, reverse=bool(number % 2))
            results = {rows: timed(engine, prompt, rows, options) for rows in turns}
            (alone, tokens), (guessed, others) = (results[rows] for rows in sorted(seconds))
            ratios.append(alone / guessed)
            same += tokens == others
            total += len(tokens)
            for rows, (taken, _) in results.items():
                seconds[rows] += taken
        speeds = " and ".join(f"{total / taken:.1f}" for taken in seconds.values())
        print(
            f"{name}: {speeds} tokens/s without and with guesses, ratio {statistics.median(ratios):.2f} (median of "
            f"{len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f}), the same answer {same} times"
        )


if __name__ == "__main__":
    main()
