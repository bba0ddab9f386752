"""`shears bench`: a package's speed beside the dense model's, in our kernels and transformers."""

import logging
import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import NumberFormat
from shears.config import BenchConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.devices import set_threads
from shears.models.load import load_model
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.progress import meter
from shears.records.timing import processor
from shears.runtime.choice import decoder_of, package_backend
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.loaded_model import source_of_model

logger = logging.getLogger(__name__)
SHORT_PROMPT = 64  # tokens of the prompt that is continued
TRANSFORMERS = "dense, transformers"
TUNED = "dense, transformers, oneDNN off"
OURS = "dense, our kernels ({})"


@dataclass(frozen=True)
class Contestant:
    """A backend to measure; `tuned` turns oneDNN off, which is slow for one row on some CPUs."""

    name: str
    backend: Backend
    tuned: bool = False


@dataclass(frozen=True)
class Round:
    """Seconds of a round: a prompt, a short prompt with its first token, the other tokens."""

    prefill: float
    first: float
    decode: float


def bench(package: AnyModel, **config: Any) -> dict[str, Any]:
    """Return the speed of a package and of the dense model as plain data.

    Keywords are those of BenchConfig. The data are `decode_tokens_per_second`,
    `prefill_tokens_per_second`, `time_to_first_token_seconds` (median, min and max over rounds) and
    `memory_bytes` of the package and of every contestant, and ratios round by round. InputError for
    a model that is not a package.
    """
    wanted = build(BenchConfig, "bench", config)
    ref = resolve(package)
    if not ref.is_package:
        raise InputError(
            f"bench needs a package, {ref.name} is another model; make one with shears export --format package"
        )
    set_threads(wanted.threads)
    contestants = _contestants(ref, wanted)
    longest = contestants[0].backend.max_length
    length = max(wanted.prompt_tokens, SHORT_PROMPT + wanted.new_tokens)
    if length > longest:
        raise InputError(
            f"prompt_tokens and {SHORT_PROMPT} + new_tokens must be at most the model's {longest}, got {length}; "
            "ask for less"
        )
    rounds = _measured(contestants, wanted)
    rows = [_figures(each, rounds[each.name], wanted) for each in contestants]
    ours = rounds[contestants[0].name]
    ratios = [_ratios(ours, rounds[each.name], each.name) for each in contestants[1:]]
    warn_if_slower(ratios, OURS.format(values_of(ref.package)))
    keys = ("decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds", "memory_bytes")
    sizes = wanted.model_dump(include={"prompt_tokens", "new_tokens", "rounds"})
    machine = {"cpu": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    own = {key: rows[0][key] for key in keys}
    return {"package": ref.name, **machine, **sizes, **own, "contestants": rows, "ratios": ratios}


def decoding(backend: Backend, new_tokens: int, rounds: int) -> dict[str, float]:
    """Return the tokens per second of decoding behind SHORT_PROMPT tokens: median, min and max.

    A warm-up round is not counted. InputError for more tokens than the backend holds.
    """
    if SHORT_PROMPT + new_tokens > backend.max_length:
        raise InputError(
            f"{SHORT_PROMPT} + new_tokens must be at most the model's {backend.max_length}, "
            f"got {SHORT_PROMPT + new_tokens}; ask for less"
        )
    wanted = BenchConfig(prompt_tokens=1, new_tokens=new_tokens, rounds=rounds)
    prompt = random.Random(0).choices(range(backend.vocab_size), k=SHORT_PROMPT)
    measured = [_one_round(backend, prompt, wanted) for _ in range(1 + rounds)][1:]
    return _spread((new_tokens - 1) / each.decode for each in measured)


def package_decoding(package: AnyModel, new_tokens: int, rounds: int) -> dict[str, float]:
    """Return what `decoding` measures of a package in the backend that would run it."""
    return decoding(package_backend(resolve(package)), new_tokens, rounds)


def warn_if_slower(ratios: Sequence[Mapping[str, Any]], dense: str) -> None:
    """Warn if the package is slower than the dense model in the same kernels and format."""
    for ratio in ratios:
        if ratio["over"] == dense and ratio["decode"]["median"] < 1:
            logger.warning(
                "the package must decode faster than the dense model in our kernels, it reaches %.2f of its speed; "
                "shears env shows which walks the kernels take, SHEARS_TUNING=again measures them anew",
                ratio["decode"]["median"],
            )


def _contestants(model: ModelRef, wanted: BenchConfig) -> list[Contestant]:
    """Return the package, then the dense model in every backend that covers it."""
    values = values_of(model.package)
    package = package_backend(model)
    dense = load_model(wanted.against or model, "fp32" if values == "fp32" else "bf16", "cpu")
    backend = TransformersBackend(dense, max_sequences=1)
    return [
        Contestant(f"package ({values}, {package.describe()['name']})", package),
        *_dense_in_kernels(dense, values),
        Contestant(TRANSFORMERS, backend),
        Contestant(TUNED, backend, tuned=True),
    ]


def values_of(package: Package) -> NumberFormat:
    """Return the format of most packed weights; of the other tensors if none is packed."""
    index = package.index
    entries = [entry.values for entry in index.packed.values()]
    if entries:
        return max(sorted(set(entries)), key=entries.count)
    sizes = Counter[str]()
    for entry in index.dense.values():
        sizes[entry.dtype] += math.prod(entry.shape)
    return "fp32" if sizes.most_common(1)[0][0] == "fp32" else "bf16"


def _dense_in_kernels(dense: PreTrainedModel, values: NumberFormat) -> Iterator[Contestant]:
    """Yield the dense model in our kernels, in its format and in the package's, if covered."""
    own: NumberFormat = "fp32" if dense.dtype == torch.float32 else "bf16"
    try:
        plan_of(dense.config)
        for numbers in dict.fromkeys((own, values)):
            backend = decoder_of(source_of_model(dense, numbers, sparse=False), max_sequences=1)
            yield Contestant(OURS.format(numbers), backend)
    except NotCoveredError:
        return


def _measured(contestants: Sequence[Contestant], wanted: BenchConfig) -> Mapping[str, list[Round]]:
    """Return the rounds of every contestant without the first, a warm-up."""
    generator = random.Random(0)
    vocab_size = contestants[0].backend.vocab_size
    prompt = [generator.randrange(vocab_size) for _ in range(max(wanted.prompt_tokens, SHORT_PROMPT))]
    rounds: dict[str, list[Round]] = {each.name: [] for each in contestants}
    with meter("bench", len(contestants) * (1 + wanted.rounds), "run") as progress:
        for number in range(1 + wanted.rounds):
            for each in random.Random(number).sample(contestants, len(contestants)):
                time.sleep(0.01)  # for one backend's threads to go to sleep before the next runs
                with _without_onednn() if each.tuned else nullcontext():
                    rounds[each.name].append(_one_round(each.backend, prompt, wanted))
                progress.advance(note=f", {each.name}")
    return {name: measured[1:] for name, measured in rounds.items()}


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # torch warns about absent GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _one_round(backend: Backend, prompt: Sequence[int], wanted: BenchConfig) -> Round:
    start = time.perf_counter()
    backend.prefill(0, prompt[: wanted.prompt_tokens])
    prefill = time.perf_counter() - start
    backend.drop(0)
    start = time.perf_counter()
    token = int(backend.prefill(0, prompt[:SHORT_PROMPT]).argmax())
    middle = time.perf_counter()
    for _ in range(wanted.new_tokens - 1):
        token = int(backend.step([0], [token])[0].argmax())
    end = time.perf_counter()
    backend.drop(0)
    return Round(prefill, middle - start, end - middle)


def _figures(contestant: Contestant, rounds: Sequence[Round], wanted: BenchConfig) -> dict[str, Any]:
    backend = contestant.backend.describe()
    memory = int(str(backend["memory_bytes"])) + int(str(backend.get("mapped_bytes", 0)))
    return {
        "name": contestant.name,
        "decode_tokens_per_second": _spread((wanted.new_tokens - 1) / each.decode for each in rounds),
        "prefill_tokens_per_second": _spread(wanted.prompt_tokens / each.prefill for each in rounds),
        "time_to_first_token_seconds": _spread(each.first for each in rounds),
        "memory_bytes": memory,
        "backend": {key: value for key, value in backend.items() if key in ("name", "isa", "values", "head")},
    }


def _ratios(ours: Sequence[Round], theirs: Sequence[Round], name: str) -> dict[str, Any]:
    """Return how many times as fast as another contestant the package is, round by round."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "over": name,
        "decode": _spread(other.decode / own.decode for own, other in pairs),
        "prefill": _spread(other.prefill / own.prefill for own, other in pairs),
        "first_token": _spread(other.first / own.first for own, other in pairs),
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest value."""
    numbers = list(values)
    return {"median": median(numbers), "min": min(numbers), "max": max(numbers)}
