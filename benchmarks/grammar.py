"""What a grammar costs a token: the same model with and without, in turns.

    python -m benchmarks.grammar package --rounds 9

Times are CPU seconds of the process, so that work beside it counts little; one thread.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

from shears.runtime import load
from shears.runtime.generation.batch import Batch
from shears.runtime.generation.engine import Engine
from shears.runtime.generation.tool_calls import CallRules, call_format

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "story": {"type": "string", "minLength": 300},
        "kind": {"enum": ["hero", "villain"]},
    },
    "required": ["name", "age", "story", "kind"],
    "additionalProperties": False,
}
TURNS = [{"role": "user", "content": "Invent a person: name, age, a long story, and hero or villain, as JSON."}]


def seconds(engine: Engine, prompts: list[list[int]], options: Mapping[str, Any]) -> float:
    """Return CPU seconds per generated token, the reading of the prompts not counted."""
    answers = [engine.continuation(tokens, **{**options, "seed": seed}) for seed, tokens in enumerate(prompts)]
    for answer in answers:
        engine.batch.add(answer)
    while not all(answer.tokens for answer in answers):
        engine.batch.advance()
    start = time.process_time()
    before = sum(len(answer.tokens) for answer in answers)
    while not all(answer.done for answer in answers):
        engine.batch.advance()
    return (time.process_time() - start) / (sum(len(answer.tokens) for answer in answers) - before)


def main() -> None:
    """Print the median time of a token of each kind of answer, and its ratio to the free one of the same round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=60)
    arguments = parser.parse_args()
    loaded = load(arguments.model, threads=1)
    engine = Engine(loaded.backend, loaded.tokenizer, frozenset())  # no answer ends early
    engine.batch = Batch(loaded.backend)
    tokens = engine.encode_chat(TURNS)
    start = time.process_time()
    engine.grammars.of_schema({})
    print(f"tokenizer prepared in {time.process_time() - start:.2f} s")
    start = time.process_time()
    schema = engine.grammars.of_schema(PERSON)
    print(f"schema compiled in {1e3 * (time.process_time() - start):.1f} ms")
    rules = CallRules({"save": PERSON}, required=True)
    call = engine.grammars.of_rules(rules.write(call_format(engine.tokenizer), engine.tokenizer, engine.grammars))
    kinds = {"free": None, "schema": schema, "call": call}
    for count in (1, 16):
        for temperature in (0.0, 1.0):
            options = {"temperature": temperature, "max_new_tokens": arguments.tokens}
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            for number in range(arguments.rounds):
                for kind in sorted(kinds, reverse=number % 2 == 1):
                    times[kind].append(seconds(engine, [tokens] * count, {**options, "grammar": kinds[kind]}))
            _report(f"{count} at once, temperature {temperature:.0f}", times)


def _report(case: str, times: Mapping[str, list[float]]) -> None:
    for kind, measured in times.items():
        ratios = sorted(each / free for each, free in zip(measured, times["free"], strict=True))
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{case}, {kind}: {1e3 * statistics.median(measured):.2f} ms a token, ratio {spread}", flush=True)


if __name__ == "__main__":
    main()
