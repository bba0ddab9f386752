"""How fast the native decoder answers a task, and what bounds it.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation_speed MODEL --task gsm8k --data test.json --limit 32

Prints seconds of processor time and of the clock for packing, reading prompts and decoding, tokens a second of both,
and the parts of a step: products of the layers and of the head, alone with the same number of rows. Processor time
says what the machine could do if it did nothing else; with several threads it counts all of them.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser_of
from shears.config import EvaluateConfig
from shears.data.examples import load_examples, prompts_of
from shears.evaluation.decode import ContinuousDecoder
from shears.evaluation.paper_tasks import paper_row
from shears.evaluation.run import open_model
from shears.models.ref import resolve_with


class Clock:
    """Adds up processor and clock time, calls and rows, by name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def timed(self, name: str, function: Callable[..., Any], count: Callable[..., int]) -> Callable[..., Any]:
        """Return the function, its calls noted."""
        total = self.rows.setdefault(name, [0.0, 0.0, 0.0, 0.0])

        def wrapped(*arguments: Any) -> Any:
            busy, start = time.process_time(), time.perf_counter()
            result = function(*arguments)
            for place, value in enumerate(
                (time.process_time() - busy, time.perf_counter() - start, 1, count(*arguments))
            ):
                total[place] += value
            return result

        return wrapped

    def lines(self) -> list[str]:
        """Return a line for each name."""
        return [
            f"{name:12} {busy:8.1f} s busy {clock:8.1f} s {calls:7.0f} calls {rows:8.0f} tokens "
            f"{rows / busy if busy else 0:8.0f} tokens/s busy {rows / clock if clock else 0:8.0f} tokens/s"
            for name, (busy, clock, calls, rows) in self.rows.items()
        ]


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("--adapter")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = EvaluateConfig(
        task=arguments.task, data=arguments.data, limit=arguments.limit, num_beams=1, backend="native",
        max_new_tokens=arguments.max_new_tokens,
    )  # fmt: skip
    clock = Clock()
    ref = resolve_with(arguments.model, arguments.adapter, config.weights)
    opened = clock.timed("load, pack", open_model, lambda *_: 0)
    subject = opened(ref, arguments.adapter, config)
    backend: Any = subject.backend
    convert = partial(paper_row, config.task)
    rows = load_examples(config.data, "alpaca", subject.tokenizer, config.limit, convert, config.columns)
    prompts = prompts_of(rows, subject.tokenizer)
    backend.prefill = clock.timed("read", backend.prefill, lambda _, tokens: len(tokens))
    backend.step = clock.timed("decode", backend.step, lambda sequences, _: len(sequences))
    decoder = ContinuousDecoder(backend, subject.tokenizer, subject.model.generation_config, config.longest_answer)
    answer = clock.timed("all answers", decoder.answers, lambda _: sum(map(len, prompts)))
    answer(prompts)
    print("\n".join(clock.lines()))
    for count in (4, 8, 12, 16):
        print(f"a step of {count} rows: {1000 * _step(backend, count):.1f} ms busy")


def _step(backend: Any, count: int, turns: int = 5) -> float:
    for sequence in range(count):
        backend._decoder.drop(sequence)
        backend.prefill(sequence, list(np.arange(1, 129)))
    backend.step(range(count), [5] * count)
    start = time.process_time()
    for _ in range(turns):
        backend.step(range(count), [5] * count)
    return (time.process_time() - start) / turns


if __name__ == "__main__":
    main()
