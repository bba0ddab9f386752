"""`shears bench`: a package's speed and the dense model's in each backend; what a machine is."""

import logging
import math
import platform
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from shears.checkpoints.package_file import Package
from shears.checkpoints.packed_layout import NumberFormat
from shears.config import BenchConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.devices import set_threads
from shears.models.load import load_model
from shears.models.ref import AnyModel, resolve
from shears.progress import meter
from shears.records.artifacts import __version__
from shears.records.timing import processor, versions
from shears.runtime.backend import Backend
from shears.runtime.loading import decoder_of, package_backend, package_in
from shears.runtime.native import kernels_available
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.model_source import source_of_model
from shears.runtime.transformers_backend import TransformersBackend

logger = logging.getLogger(__name__)
TIMED_PRODUCTS = 15  # products timed per kind of weight; the median counts
SHORT_PROMPT = 64  # tokens of the prompt that is continued
TRANSFORMERS = "dense, transformers"
OURS = "dense, our kernels ({})"


class Round(NamedTuple):
    prefill: float
    first_token: float
    decode: float


def bench(package: AnyModel, **config: Any) -> dict[str, Any]:
    """Return a package's speed and the dense model's as plain data; keywords are BenchConfig's.

    Speeds have median, min and max over the rounds, ratios are taken round by round.
    """
    wanted = build(BenchConfig, "bench", config)
    ref = resolve(package_in(package))
    if not ref.is_package:
        raise InputError(f"bench needs a package, {ref.name} is none; export it in format package")
    set_threads(wanted.threads)
    own = package_backend(ref)
    values = values_of(ref.package)
    dense = load_model(ref, "fp32" if values == "fp32" else "bf16", "cpu")
    contestants: dict[str, Backend] = {
        f"package ({values}, {own.describe()['name']})": own,
        **dict(_in_kernels(dense, values)),
        TRANSFORMERS: TransformersBackend(dense, max_sequences=1),
    }
    rounds = _measured(contestants, wanted)
    first, *others = rounds
    ratios = [_ratios(rounds[first], rounds[name], name) for name in others]
    rows = [_figures(name, backend, rounds[name], wanted) for name, backend in contestants.items()]
    sizes = wanted.model_dump(exclude={"threads"})
    host = {"cpu": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    figures = {key: value for key, value in rows[0].items() if key not in ("name", "backend")}
    return {"package": ref.name, **host, **sizes, **figures, "contestants": rows, "ratios": ratios}


def decoding(backend: Backend, new_tokens: int, rounds: int) -> dict[str, float]:
    """Return the tokens per second of decoding behind SHORT_PROMPT tokens: median, min and max."""
    wanted = BenchConfig(prompt_tokens=1, new_tokens=new_tokens, rounds=rounds)
    return _spread((new_tokens - 1) / each.decode for each in _measured({"": backend}, wanted)[""])


def package_decoding(package: AnyModel, new_tokens: int, rounds: int) -> dict[str, float]:
    return decoding(package_backend(resolve(package)), new_tokens, rounds)


def values_of(package: Package) -> NumberFormat:
    """Return the format of most packed weights; of the other tensors if none is packed."""
    if entries := [entry.values for entry in package.index.packed.values()]:
        return max(sorted(set(entries)), key=entries.count)
    sizes = Counter[str]()
    for entry in package.index.dense.values():
        sizes[entry.dtype] += math.prod(entry.shape)
    return "fp32" if sizes.most_common(1)[0][0] == "fp32" else "bf16"


def _in_kernels(dense: PreTrainedModel, values: NumberFormat) -> Iterator[tuple[str, Backend]]:
    own: NumberFormat = "fp32" if dense.dtype == torch.float32 else "bf16"
    try:
        plan_of(dense.config)
        for numbers in dict.fromkeys((own, values)):
            yield OURS.format(numbers), decoder_of(source_of_model(dense, numbers, sparse=False), max_sequences=1)
    except NotCoveredError:
        return


def _measured(contestants: Mapping[str, Backend], wanted: BenchConfig) -> dict[str, list[Round]]:
    """Return each contestant's rounds but the first, a warm-up; all take turns on one prompt."""
    backend = next(iter(contestants.values()))
    length = max(wanted.prompt_tokens, SHORT_PROMPT + wanted.new_tokens)
    if length > backend.max_length:
        rule = f"prompt_tokens and {SHORT_PROMPT} + new_tokens must be at most the model's"
        raise InputError(f"{rule} {backend.max_length}, got {length}")
    prompt = random.Random(0).choices(range(backend.vocab_size), k=max(wanted.prompt_tokens, SHORT_PROMPT))
    rounds: dict[str, list[Round]] = {name: [] for name in contestants}
    with meter("bench", len(contestants) * (1 + wanted.rounds), "runs") as progress:
        for number in range(1 + wanted.rounds):
            for name in random.Random(number).sample(list(contestants), len(contestants)):
                time.sleep(0.01)  # for one backend's threads to go to sleep before the next runs
                rounds[name].append(_one_round(contestants[name], prompt, wanted))
                progress.advance(note=f", {name}")
    return {name: measured[1:] for name, measured in rounds.items()}


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


def _figures(name: str, backend: Backend, rounds: Sequence[Round], wanted: BenchConfig) -> dict[str, Any]:
    about = backend.describe()
    return {
        "name": name,
        "decode_tokens_per_second": _spread((wanted.new_tokens - 1) / one.decode for one in rounds),
        "prefill_tokens_per_second": _spread(wanted.prompt_tokens / one.prefill for one in rounds),
        "time_to_first_token_seconds": _spread(one.first_token for one in rounds),
        "memory_bytes": int(str(about["memory_bytes"])) + int(str(about.get("mapped_bytes", 0))),
        "backend": {key: value for key, value in about.items() if key in ("name", "isa", "values", "head")},
    }


def _ratios(ours: Sequence[Round], theirs: Sequence[Round], name: str) -> dict[str, Any]:
    times = [Round(*(other / own for own, other in zip(*pair, strict=True))) for pair in zip(ours, theirs, strict=True)]
    return {"over": name, **{key: _spread(getattr(each, key) for each in times) for key in Round._fields}}


def _spread(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    return {"median": median(numbers), "min": min(numbers), "max": max(numbers)}


def environment() -> dict[str, Any]:
    """Return versions, processor, instruction sets and speeds as plain data; takes seconds.

    `speeds` are picoseconds per weight of a product by one token, on all threads.
    """
    data: dict[str, Any] = {
        "versions": {"shears": __version__, **versions()},
        "processor": processor(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_sets": {},
        "speeds": [],
    }
    if not kernels_available():
        return data
    from shears.runtime.native import _native
    from shears.runtime.native.tuning import CODES, tune, weight_bytes

    pool = _native.Pool(torch.get_num_threads())
    for values, code in CODES.items():
        row: dict[str, Any] = {"values": values}
        for kind, sparse in (("sparse", True), ("dense", False)):
            tune(values, sparse)
            row[kind] = 1e12 * _native.measure_speed(code, sparse, 1, weight_bytes(), TIMED_PRODUCTS, pool)[0]
        data["speeds"].append(row)
    return {**data, "instruction_sets": _native.features()}
