"""Decoding on a CPU: Hugging Face, the native decoder dense and sparse, and llama.cpp, interleaved in one run.

    python -m benchmarks.decode speed --model smollm2-135m --sparse FOLDER --adapter FOLDER [--threads 1]
        [--llama-cpp PYTHON --gguf FOLDER]
    python -m benchmarks.decode quality --sparse FOLDER [--adapter FOLDER] --data FOLDER [--questions FILE.jsonl]
    python -m benchmarks.decode loading --packages FOLDER ...

--sparse is a model at 50 % zeros, --adapter its LoRA, which no arm merges. PYTHON has llama-cpp-python; --gguf is the
folder of its models, named NAME-bf16.gguf, NAME-q8_0.gguf, ... (convert_hf_to_gguf.py of llama.cpp makes the first,
`llama_cpp_decode.py quantize` the others). A round runs every arm once, in a new order: a prompt of 16 tokens and 64
new tokens (tokens/s are the 64 over all seconds), then a prompt of 512 tokens alone. The first round is a warm-up and
not counted. `--clocks wall cpu` also reports seconds of CPU time, for one thread on a machine with other load.
"""

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from transformers import AutoTokenizer

from benchmarks.decode_arms import (
    HF_DEFAULT,
    HF_TUNED,
    LLAMA,
    NATIVE_BF16,
    NATIVE_DENSE,
    NATIVE_INT8,
    Arm,
    Timing,
    adapted,
    hugging_face,
    llama_cpp_arms,
    loaded,
    native_arms,
)  # fmt: skip
from benchmarks.decode_quality import report_quality
from benchmarks.report import environment, log_to_stderr
from shears.checkpoints.packed.file import read_package
from shears.models.ref import resolve
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.model_source import source_of_package

PROMPT, NEW, PREFILL = 16, 64, 512  # tokens
WARM_UP = 1  # rounds
DECODE_TARGETS = (  # two arms, and the least ratio of their tokens/s
    (NATIVE_BF16, HF_TUNED, 4.2),
    (NATIVE_BF16, HF_DEFAULT, 7.0),
    (NATIVE_INT8, HF_TUNED, 6.0),
    (NATIVE_BF16, NATIVE_DENSE, None),
    (NATIVE_BF16, LLAMA + "bf16", 1.3),
    (NATIVE_INT8, LLAMA + "q8_0", 1.0),
    (NATIVE_INT8, LLAMA + "q4_0", None),
)
PREFILL_TARGETS = (
    (NATIVE_BF16, HF_DEFAULT, 1.0),
    (NATIVE_BF16, HF_TUNED, 1.0),
    (NATIVE_INT8, HF_DEFAULT, 1.0),
    (NATIVE_BF16, LLAMA + "bf16", None),
)
Seconds = Mapping[str, Sequence[float]]


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    log_to_stderr()
    torch.set_num_threads(arguments.threads)
    print(environment(), flush=True)
    reports = {"speed": report_speed, "quality": report_quality, "loading": report_loading}
    for line in reports[arguments.command](arguments):
        print(line, flush=True)


def report_speed(arguments: argparse.Namespace) -> Iterator[str]:
    """Time all arms; yield the lines of the report."""
    folder = str(resolve(arguments.model).folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"][:PREFILL]
    dense = loaded(folder)
    with llama_cpp_arms(arguments.llama_cpp, arguments.gguf, arguments.threads) as others:
        arms = {
            HF_DEFAULT: hugging_face(dense, tuned=False),
            HF_TUNED: hugging_face(dense, tuned=True),
            **native_arms(dense, adapted(arguments.sparse, arguments.adapter), arguments.threads),
            **others,
        }
        arms = {name: arm for name, arm in arms.items() if any(text in name for text in arguments.only)}
        decode = measured(arms, prompt[:PROMPT], NEW, arguments.rounds)
        prefill = measured(arms, prompt, 0, arguments.rounds)
    for clock in arguments.clocks:
        how = f"{arguments.threads} threads, {arguments.rounds} rounds, {clock} seconds"
        yield f"\nDecode, {PROMPT} + {NEW} tokens, {how}: tokens/s\n"
        yield from table(seconds_of(clock, decode), NEW, DECODE_TARGETS)
        yield f"\nPrefill, {PREFILL} tokens, {how}: tokens/s\n"
        yield from table(seconds_of(clock, prefill), PREFILL, PREFILL_TARGETS)


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
            cells.append(_spread(seconds[WARM_UP:], 2))
        yield f"| {Path(folder).name} | {' | '.join(cells)} |"


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
        yield f"| {name} | {_spread([tokens / value for value in values], 1)} |"
    yield "\n| tokens/s over tokens/s | times (min to max) | target | met |\n" + "| --- " * 4 + "|"
    for arm, other, target in targets:
        if arm in seconds and other in seconds:
            ratios = [theirs / ours for ours, theirs in zip(seconds[arm], seconds[other], strict=True)]
            met = "" if target is None else "yes" if median(ratios) >= target else "no"
            yield f"| {arm} / {other} | {_spread(ratios, 2)} | {target or ''} | {met} |"


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["speed", "quality", "loading"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sparse")
    parser.add_argument("--adapter")
    parser.add_argument("--packages", nargs="+", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clocks", nargs="+", choices=Timing._fields, default=["wall"])
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--data", type=Path, help="folder of WikiText-2")
    parser.add_argument("--questions", help="a file of MAWPS questions; the adapter was trained on others")
    return parser.parse_args()


if __name__ == "__main__":
    main()
