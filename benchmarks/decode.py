"""Decoding on a CPU: Hugging Face, the native decoder dense and sparse, and llama.cpp, interleaved in one run.

    python -m benchmarks.decode speed|memory --model FOLDER --packages FOLDER ... [--threads 1]
        [--llama-cpp PYTHON --gguf FOLDER]
    python -m benchmarks.decode loading --packages FOLDER ...

--model is the dense model, --packages are packages of its sparse form, named after what they hold (int4, int8-lora);
their adapters are not merged. PYTHON has llama-cpp-python; --gguf is the folder of its models, named NAME-q8_0.gguf,
NAME-q4_k_m.gguf, ... (`benchmarks.engines` makes one from another). A round of `speed` runs every arm once,
in a new order: a prompt of 16 tokens and 64 new tokens (tokens/s are the 64 over all seconds), a prompt of 512 tokens
alone, and a prompt of 64 tokens with one new one (the first token of an answer). The first round is a warm-up and not
counted. `--clocks wall cpu` also reports seconds of CPU time, for one thread on a machine with other load. `memory`
loads every arm in a process of its own; it prints what stays resident after a short text, and the bytes on disk.
"""

import argparse
import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.engines import LONGEST
from benchmarks.memory import memory
from benchmarks.report import MODEL, environment, log_to_stderr, parser_of, quotients, spread
from benchmarks.rival import ROOT, Program, Rival, opened
from shears.checkpoints.package_file import read_package
from shears.checkpoints.packed_layout import NumberFormat
from shears.models.load import put_adapter
from shears.models.ref import resolve
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.model_source import ModelSource, source_of_model, source_of_package

PROMPT, NEW, PREFILL, QUESTION = 16, 64, 512, 64  # tokens
WARM_UP = 1  # rounds
HF_DEFAULT, HF_TUNED = "HF bf16, default", "HF bf16, tuned"
DENSE = "ours dense "  # + the number format of blocks and head
SPARSE = "ours sparse "  # + the name of the package's folder
DENSE_VALUES: tuple[NumberFormat, ...] = ("bf16", "int8", "int4")
LLAMA = "llama.cpp "  # + the name of its quantization
INT8, INT4 = SPARSE + "int8", SPARSE + "int4"
DECODE_TARGETS = (  # two arms, and the least ratio of their tokens/s
    (SPARSE + "bf16", DENSE + "bf16", None),
    (INT8, DENSE + "int8", 1.65),
    (INT4, DENSE + "int4", None),
    (INT4, INT8, None),
    (INT8, LLAMA + "q4_k_m", 1.35),
    (INT8, LLAMA + "q8_0", 2.2),
    (INT4, LLAMA + "q4_k_m", 1.7),
    (INT4, LLAMA + "q4_0", None),
    (INT4, LLAMA + "q3_k_m", None),
    (INT8, SPARSE + "int8-lora", None),
    (INT4, SPARSE + "int4-lora", None),
    (INT8, HF_TUNED, None),
)
PREFILL_TARGETS = (
    (INT8, DENSE + "int8", 0.95),
    (INT4, DENSE + "int4", 0.95),
    (SPARSE + "bf16", HF_DEFAULT, None),
    (INT8, LLAMA + "q4_0", 1.4),
    (INT4, LLAMA + "q4_0", 1.4),
    (INT4, LLAMA + "q4_k_m", 1.4),
)
Seconds = Mapping[str, Sequence[float]]

Run = Callable[[Sequence[int], int], list[int]]  # a prompt, and the number of new tokens (0: only read the prompt)


class Timing(NamedTuple):
    """Seconds of wall time, and of CPU time of the arm's process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Arm:
    """A way to continue a prompt; `run` times it."""

    run: Callable[[Sequence[int], int], tuple[Timing, list[int]]]


def timed(run: Run) -> Arm:
    """Return the arm that runs a function in this process."""

    def run_timed(prompt: Sequence[int], new: int) -> tuple[Timing, list[int]]:
        wall = time.perf_counter()
        cpu = time.process_time()
        tokens = run(prompt, new)
        return Timing(time.perf_counter() - wall, time.process_time() - cpu), tokens

    return Arm(run_timed)


def loaded(folder: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Return a model in evaluation mode."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
    return model


def adapted(base: str, adapter: str | None, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a base in one number format, with its adapter, if any, not merged."""
    if adapter is None:
        return loaded(base, dtype)
    return put_adapter(loaded(base, dtype), Path(adapter)).to(dtype).eval()


def hugging_face(model: Any, *, tuned: bool) -> Arm:
    """Return transformers' generate; `tuned` turns oneDNN off, which is slow for one row on some CPUs."""

    @torch.no_grad()
    def run(prompt: Sequence[int], new: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        with torch.backends.mkldnn.flags(enabled=False) if tuned else nullcontext():
            if not new:
                model(ids, use_cache=True, logits_to_keep=1)
                return []
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
            )
        tokens: list[int] = whole[0, len(prompt) :].tolist()
        return tokens

    return timed(run)


def native(source: ModelSource, threads: int, head: NumberFormat | None = None) -> NativeBackend:
    """Return the native decoder of one sequence."""
    return NativeBackend(source, threads, max_length=LONGEST, max_sequences=1, head=head)


def continued(backend: NativeBackend, prompt: Sequence[int], new: int, never: int | None = None) -> list[int]:
    """Continue a prompt greedily; `never` is a token that is never chosen."""
    backend.drop(0)
    logits = backend.prefill(0, prompt)
    tokens: list[int] = []
    while len(tokens) < new:
        if never is not None:
            logits[never] = -float("inf")
        tokens.append(int(logits.argmax()))
        if len(tokens) < new:
            logits = backend.step([0], tokens[-1:])[0]
    return tokens


def native_backends(
    dense: Any, packages: Sequence[Path], threads: int, only: Callable[[str], bool]
) -> Iterator[tuple[str, NativeBackend]]:
    """Yield the native decoder of a dense model in every number format, and of every package, if `only` its name."""
    for values in DENSE_VALUES:
        if only(DENSE + values):
            yield DENSE + values, native(source_of_model(dense, values, sparse=False), threads, values)
    for folder in packages:
        if only(SPARSE + folder.name):
            yield SPARSE + folder.name, native(source_of_package(read_package(folder)), threads)


def native_arm(backend: NativeBackend) -> Arm:
    """Return the arm of a native decoder."""
    return timed(partial(continued, backend))


def llama_cpp_files(folder: Path | None) -> list[Path]:
    """Return the models of llama.cpp in a folder."""
    return sorted(folder.glob("*.gguf")) if folder else []


def llama_cpp_name(file: Path) -> str:
    """Return the arm's name: NAME-q4_k_m.gguf is "llama.cpp q4_k_m"."""
    return LLAMA + file.stem.rpartition("-")[2]


@contextmanager
def llama_cpp_arms(python: str | None, folder: Path | None, threads: int) -> Iterator[dict[str, Arm]]:
    """Yield an arm for every .gguf file of a folder, each in a process of `python`; no arm if that is None."""
    program = Program("llama.cpp", str(python))
    files = llama_cpp_files(folder) if python and folder else []
    with ExitStack() as stack:
        yield {llama_cpp_name(file): remote(stack.enter_context(opened(program, file, threads))) for file in files}


def remote(process: Rival, texts: int = 1) -> Arm:
    """Return the arm of a rival's process, by its own clocks; the wall time of several texts is that of decoding."""

    def run(prompt: Sequence[int], new: int) -> tuple[Timing, list[int]]:
        answer = process.ask(prompt, new, texts=texts)
        return Timing(answer["decoding" if texts > 1 else "seconds"], answer["cpu"]), answer["tokens"]

    return Arm(run)


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    log_to_stderr()
    torch.set_num_threads(arguments.threads)
    print(environment(), flush=True)
    reports = {
        "speed": report_speed,
        "memory": report_memory,
        "resident": report_resident,
        "loading": report_loading,
    }
    for line in reports[arguments.command](arguments):
        print(line, flush=True)


def report_speed(arguments: argparse.Namespace) -> Iterator[str]:
    """Time all arms; yield the lines of the report."""
    folder = str(resolve(arguments.model).folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text = Path(__file__).parents[1].joinpath("docs", "internals", "kernels.md").read_text()
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"][:PREFILL]
    with llama_cpp_arms(arguments.llama_cpp, arguments.gguf, arguments.threads) as others:
        arms = {**own_arms(folder, arguments), **others}
        decode = measured(arms, prompt[:PROMPT], NEW, arguments.rounds)
        prefill = measured(arms, prompt, 0, arguments.rounds)
        first = measured(arms, prompt[:QUESTION], 1, arguments.rounds)
    for clock in arguments.clocks:
        how = f"{arguments.threads} threads, {arguments.rounds} rounds, {clock} seconds"
        yield f"\nDecode, {PROMPT} + {NEW} tokens, {how}: tokens/s\n"
        yield from table(seconds_of(clock, decode), NEW, DECODE_TARGETS)
        yield f"\nPrefill, {PREFILL} tokens, {how}: tokens/s\n"
        yield from table(seconds_of(clock, prefill), PREFILL, PREFILL_TARGETS)
        yield f"\nFirst token after a prompt of {QUESTION} tokens, {how}: ms\n"
        yield "| arm | ms (min to max) |\n| --- | --- |"
        for name, values in seconds_of(clock, first).items():
            yield f"| {name} | {spread([1e3 * value for value in values], 0)} |"


def own_arms(folder: str, arguments: argparse.Namespace) -> dict[str, Arm]:
    """Return the arms of this process that --only names, the dense model loaded once."""
    dense = loaded(folder)

    def only(name: str) -> bool:
        return any(text in name for text in arguments.only)

    arms = {HF_DEFAULT: hugging_face(dense, tuned=False), HF_TUNED: hugging_face(dense, tuned=True)}
    backends = native_backends(dense, arguments.packages, arguments.threads, only)
    return {name: arm for name, arm in arms.items() if only(name)} | {
        name: native_arm(backend) for name, backend in backends
    }


def report_memory(arguments: argparse.Namespace) -> Iterator[str]:
    """Load every arm in a process of its own; yield its resident memory after a short text, and its bytes on disk."""
    yield "\n| arm | resident, MB | on disk, MB |\n| --- | --- | --- |"
    folder = resolve(arguments.model).folder
    ours = {HF_DEFAULT: folder, **{DENSE + values: None for values in DENSE_VALUES}}
    for name, path in {**ours, **{SPARSE + one.name: one for one in arguments.packages}}.items():
        asked = [sys.executable, "-m", "benchmarks.decode", "resident", "--model", str(folder), "--only", name]
        asked += ["--packages", *map(str, arguments.packages)] if arguments.packages else []
        resident = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[-1]
        yield f"| {name} | {int(resident) / 1e6:.0f} | {'' if path is None else f'{_weight_bytes(path) / 1e6:.0f}'} |"
    for file in llama_cpp_files(arguments.gguf) if arguments.llama_cpp else []:
        asked = Program("llama.cpp", arguments.llama_cpp).command("resident", file.resolve())
        resident = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1]
        yield f"| {llama_cpp_name(file)} | {int(resident) / 1e6:.0f} | {file.stat().st_size / 1e6:.0f} |"


def report_resident(arguments: argparse.Namespace) -> Iterator[str]:
    """Load the one arm that --only names and use it; yield the bytes that this process then holds."""
    (name,) = arguments.only
    folder = str(resolve(arguments.model).folder)
    package = next((one for one in arguments.packages if SPARSE + one.name == name), None)
    if package is not None:
        arm = native_arm(native(source_of_package(read_package(package)), arguments.threads))
    elif name == HF_DEFAULT:
        arm = hugging_face(loaded(folder), tuned=False)
    else:
        values = next(values for values in DENSE_VALUES if DENSE + values == name)
        arm = native_arm(native(source_of_model(loaded(folder), values, sparse=False), arguments.threads, values))
    arm.run(list(range(PROMPT)), 8)
    gc.collect()
    yield str(memory("VmRSS"))


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def report_loading(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the seconds from a package's folder to the first logits, without imports; files are in the page cache."""
    yield "\n| package | s to the first logits (min to max) | without its fingerprint checked |\n| --- | --- | --- |"
    for folder in arguments.packages:
        cells = []
        for verify in (True, False):
            seconds = []
            for _ in range(WARM_UP + arguments.rounds):
                start = time.perf_counter()
                source = source_of_package(read_package(folder, verify=verify))
                NativeBackend(source, arguments.threads).prefill(0, [1])
                seconds.append(time.perf_counter() - start)
            cells.append(spread(seconds[WARM_UP:], 2))
        yield f"| {folder.name} | {' | '.join(cells)} |"


def measured(arms: Mapping[str, Arm], prompt: Sequence[int], new: int, rounds: int) -> dict[str, list[Timing]]:
    """Return the timings of every arm, without the warm-up."""
    timings: dict[str, list[Timing]] = {name: [] for name in arms}
    for number in range(WARM_UP + rounds):
        for name in random.Random(number).sample(list(arms), len(arms)):
            timings[name].append(arms[name].run(prompt, new)[0])
            time.sleep(0.01)  # one arm's threads go to sleep before the next starts
    return {name: values[WARM_UP:] for name, values in timings.items()}


def seconds_of(clock: str, timings: Mapping[str, Sequence[Timing]]) -> Seconds:
    """Return the seconds of one clock."""
    return {name: [getattr(one, clock) for one in values] for name, values in timings.items()}


def table(seconds: Seconds, tokens: int, targets: Sequence[tuple[str, str, float | None]]) -> Iterator[str]:
    """Yield the tokens/s of every arm and the ratios of arms, both with their spread over the rounds."""
    yield "| arm | tokens/s (min to max) |\n| --- | --- |"
    for name, values in seconds.items():
        yield f"| {name} | {spread([tokens / value for value in values], 1)} |"
    yield "\n| tokens/s over tokens/s | times (min to max) | target | met |\n" + "| --- " * 4 + "|"
    for arm, other, target in targets:
        if arm in seconds and other in seconds:
            ratios = quotients(seconds[other], seconds[arm])
            met = "" if target is None else "yes" if median(ratios) >= target else "no"
            yield f"| {arm} / {other} | {spread(ratios, 2)} | {target or ''} | {met} |"


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("command", choices=["speed", "memory", "resident", "loading"])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--packages", nargs="+", type=Path, default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clocks", nargs="+", choices=Timing._fields, default=["wall"])
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--gguf", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
