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


def seconds(engine: Engine, tokens: list[int], options: Mapping[str, Any]) -> float:
    """Return CPU seconds per generated token, the prompt's reading not counted."""
    answer = engine.answer(tokens, **options)
    engine.batch.add(answer)
    while not answer.tokens:
        engine.batch.advance()
    start = time.process_time()
    while not answer.done:
        engine.batch.advance()
    return (time.process_time() - start) / (len(answer.tokens) - 1)


def main() -> None:
    """Print the median time of a token of each kind of answer, and its ratio to the free one of the same round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=100)
    arguments = parser.parse_args()
    engine = load(arguments.model, threads=1)
    tokens = engine.encode_chat(TURNS)
    start = time.process_time()
    engine.grammars.of_schema({})
    print(f"tokenizer prepared in {time.process_time() - start:.2f} s")
    start = time.process_time()
    schema = engine.grammars.of_schema(PERSON)
    print(f"schema compiled in {1e3 * (time.process_time() - start):.1f} ms")
    rules = CallRules({"save": PERSON}).write(call_format(engine.tokenizer), engine.tokenizer, engine.grammars)
    kinds = {"free": None, "schema": schema, "tools": engine.grammars.of_rules(rules)}
    for temperature in (0.0, 1.0):
        options = {"temperature": temperature, "max_new_tokens": arguments.tokens, "seed": 1}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(arguments.rounds + 1):
            for kind, grammar in sorted(kinds.items(), reverse=number % 2 == 1):
                spent = seconds(engine, tokens, {**options, "grammar": grammar})
                times[kind] += [spent] if number else []  # the first round warms up
        for kind, measured in times.items():
            ratios = sorted(each / free for each, free in zip(measured, times["free"], strict=True))
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            print(
                f"temperature {temperature:.0f}, {kind:6}: {1e3 * statistics.median(measured):.2f} ms a token,"
                f" ratio {statistics.median(ratios):.3f} ({spread})"
            )


if __name__ == "__main__":
    main()
