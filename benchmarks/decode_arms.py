"""The arms of benchmarks.decode: each reads a prompt and continues it greedily by N tokens."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from shears.checkpoints.packed.file import read_package
from shears.checkpoints.packed.layout import NumberFormat
from shears.models.load import load_with_adapter, put_adapter
from shears.runtime.drop_in.swap import sparsify_linears
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.model_source import ModelSource, source_of_model, source_of_package

LONGEST = 1024  # tokens of a sequence in every arm
HF_DEFAULT, HF_TUNED = "HF bf16, default", "HF bf16, tuned"
DENSE = "ours dense "  # + the number format of blocks and head
SPARSE = "ours sparse "  # + the name of the package's folder
DENSE_VALUES: tuple[NumberFormat, ...] = ("bf16", "int8", "int4")
DROP_IN, PEFT = "drop-in ", "HF, PEFT's LoRA, tuned "  # + the name of the package's folder
LLAMA = "llama.cpp "  # + the name of its quantization
SCRIPT = Path(__file__).with_name("llama_cpp_decode.py")

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


def drop_in_arms(package: Path, threads: int) -> dict[str, Arm]:
    """Return transformers' generate with a package's weights: dense beside PEFT's LoRA, and packed."""
    dense, packed = (load_with_adapter(package, dtype="bf16", device="cpu")[0] for _ in range(2))
    sparsify_linears(packed, threads=threads)
    return {
        PEFT + package.name: hugging_face(dense, tuned=True),
        DROP_IN + package.name: hugging_face(packed, tuned=True),
    }


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
    files = llama_cpp_files(folder) if python and folder else []
    processes = {}
    try:
        for file in files:
            command = [str(python), str(SCRIPT), "serve", str(file), str(threads)]
            processes[file] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            _answer(processes[file])
        yield {llama_cpp_name(file): _remote(process) for file, process in processes.items()}
    finally:
        for process in processes.values():
            process.communicate()  # closes the process's input, which ends it


def _answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("llama.cpp must answer, but its process ended; its error is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _remote(process: "subprocess.Popen[str]") -> Arm:
    def run(prompt: Sequence[int], new: int) -> tuple[Timing, list[int]]:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"tokens": list(prompt), "new": new}) + "\n")
        process.stdin.flush()
        answer = _answer(process)
        return Timing(answer["seconds"], answer["cpu"]), answer["tokens"]

    return Arm(run)
