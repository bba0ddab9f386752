"""`shears bench`: how fast a package reads and writes, and the same model dense in the same run."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from shears.config import BenchConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.devices import set_threads
from shears.models.ref import AnyModel, resolve
from shears.progress import meter
from shears.records.timing import processor
from shears.runtime.contestants import Contestant, contestants
from shears.runtime.engine.backend import Backend

SHORT = 64  # tokens of the prompt that is continued
PAUSE = 0.01  # s; threads of one contestant go to sleep before the next begins


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, the smallest and the largest."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return that of some figures."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Round:
    """What one contestant took once, in seconds: a prompt, a short prompt with its first token, the other tokens."""

    prefill: float
    first: float
    decode: float


def bench(package: AnyModel, **config: Any) -> dict[str, Any]:
    """Return the speed of a package and of the dense model as plain data; keywords are those of BenchConfig.

    `decode_tokens_per_second`, `prefill_tokens_per_second`, `time_to_first_token_seconds` (each a median with min and
    max over the rounds) and `memory_bytes` of the package, the same of every contestant, and the ratios, which are
    taken round by round. InputError for what is no package.
    """
    wanted = build(BenchConfig, "bench", config)
    ref = resolve(package)
    if not ref.is_package:
        raise InputError(f"bench measures packages, {ref.name} is none; make one with shears export --format package")
    set_threads(wanted.threads)
    found = contestants(ref, wanted, wanted.against)
    _check_length(found, wanted)
    rounds = _measured(found, wanted)
    rows = [_figures(each, rounds[each.name], wanted) for each in found]
    ours = found[0].name
    ratios = [_ratios(rounds[ours], rounds[each.name], each.name) for each in found[1:]]
    keys = ("decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds", "memory_bytes")
    sizes = wanted.model_dump(include={"prompt_tokens", "new_tokens", "rounds"})
    machine = {"cpu": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    own = {key: rows[0][key] for key in keys}
    return {"package": ref.name, **machine, **sizes, **own, "contestants": rows, "ratios": ratios}


def _check_length(found: Sequence[Contestant], wanted: BenchConfig) -> None:
    longest, asked = found[0].backend.max_length, max(wanted.prompt_tokens, SHORT + wanted.new_tokens)
    if asked > longest:
        raise InputError(
            f"prompt_tokens and {SHORT} + new_tokens must be at most the model's {longest}, got {asked}; ask for less"
        )


def _measured(found: Sequence[Contestant], wanted: BenchConfig) -> Mapping[str, list[Round]]:
    """Return the rounds of every contestant but its first, which warms up."""
    words = random.Random(0)
    prompt = [words.randrange(found[0].backend.vocab_size) for _ in range(max(wanted.prompt_tokens, SHORT))]
    rounds: dict[str, list[Round]] = {each.name: [] for each in found}
    with meter("bench", len(found) * (1 + wanted.rounds), "run") as progress:
        for number in range(1 + wanted.rounds):
            for each in random.Random(number).sample(found, len(found)):
                time.sleep(PAUSE)
                with each.running():
                    rounds[each.name].append(_one(each.backend, prompt, wanted))
                progress.advance(note=f", {each.name}")
    return {name: taken[1:] for name, taken in rounds.items()}


def _one(backend: Backend, prompt: Sequence[int], wanted: BenchConfig) -> Round:
    prefill = _seconds(lambda: backend.prefill(0, prompt[: wanted.prompt_tokens]))
    backend.drop(0)
    token = 0

    def first() -> None:
        nonlocal token
        token = int(backend.prefill(0, prompt[:SHORT]).argmax())

    def others() -> None:
        nonlocal token
        for _ in range(wanted.new_tokens - 1):
            token = int(backend.step([0], [token])[0].argmax())

    result = Round(prefill, _seconds(first), _seconds(others))
    backend.drop(0)
    return result


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _figures(each: Contestant, rounds: Sequence[Round], wanted: BenchConfig) -> dict[str, Any]:
    speeds = {
        "decode_tokens_per_second": [(wanted.new_tokens - 1) / taken.decode for taken in rounds],
        "prefill_tokens_per_second": [wanted.prompt_tokens / taken.prefill for taken in rounds],
        "time_to_first_token_seconds": [taken.first for taken in rounds],
    }
    spreads = {name: asdict(Spread.of(values)) for name, values in speeds.items()}
    kept = {key: value for key, value in each.backend.describe().items() if key in ("name", "isa", "values", "head")}
    return {"name": each.name, **spreads, "memory_bytes": each.memory_bytes, "backend": kept}


def _ratios(ours: Sequence[Round], theirs: Sequence[Round], name: str) -> dict[str, Any]:
    """Return how many times as fast we are as another, round by round."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "over": name,
        "decode": asdict(Spread.of([other.decode / own.decode for own, other in pairs])),
        "prefill": asdict(Spread.of([other.prefill / own.prefill for own, other in pairs])),
        "first_token": asdict(Spread.of([other.first / own.first for own, other in pairs])),
    }
