"""How exactly the native decoder computes a model: logits, greedy tokens, perplexity and answers.

    python -m benchmarks.decode_quality --sparse FOLDER [--adapter FOLDER] --data FOLDER [--questions FILE.jsonl]

The reference is transformers in float32 arithmetic with the same bf16 weights; transformers in bf16 arithmetic is
reported beside the native decoder.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.decode import adapted, continued, native
from benchmarks.report import environment, log_to_stderr, parser_of, points
from shears.data.calibration import text_tokens
from shears.data.example import prompt_of
from shears.data.examples import load_examples
from shears.data.prompts import DEFAULT_TEMPLATE
from shears.evaluation.statistics import paired_difference
from shears.evaluation.tasks.registry import GENERATED
from shears.runtime.native.decoder import NativeBackend
from shears.runtime.native.model_source import source_of_model

PROMPTS, PROMPT, NEW = 50, 32, 64
WINDOWS, WINDOW = 16, 1024
ANSWER = 32  # most tokens of an answer
NATIVE = {
    "native bf16": ("bf16", None),
    "native int8, bf16 head": ("int8", None),
    "native int8, int8 head": ("int8", "int8"),
}
Array = np.ndarray[Any, np.dtype[np.float32]]


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--sparse", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--data", type=Path, required=True, help="folder of WikiText-2")
    parser.add_argument("--questions", help="a file of MAWPS questions; the adapter was trained on others")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    log_to_stderr()
    torch.set_num_threads(arguments.threads)
    print(environment(), flush=True)
    for line in report(arguments):
        print(line, flush=True)


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the report."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.sparse, trust_remote_code=False)
    tokens = text_tokens(str(arguments.data / "test.txt"), tokenizer)
    half = adapted(arguments.sparse, arguments.adapter)
    sources = {values: source_of_model(half, values) for values in ("bf16", "int8")}
    backends = {
        name: native(sources[values], arguments.threads, head)  # type: ignore[arg-type]
        for name, (values, head) in NATIVE.items()
    }
    exact = adapted(arguments.sparse, arguments.adapter).float()
    yield from _logits(exact, half, backends, tokens)
    yield from _perplexities(half, backends, tokens)
    if arguments.questions:
        yield from _answers(backends, tokenizer, arguments.questions)


@torch.no_grad()
def _logits(exact: Any, half: Any, backends: Mapping[str, NativeBackend], tokens: Sequence[int]) -> Iterator[str]:
    starts = np.linspace(0, len(tokens) - PROMPT, PROMPTS).astype(int).tolist()
    prompts = [list(tokens[start : start + PROMPT]) for start in starts]
    texts = _continued_by(exact, prompts)
    yield f"\n{PROMPTS} prompts of {PROMPT} tokens of WikiText-2, then {NEW} greedy ones of transformers in float32\n"
    yield "| arm | cosine of logits, mean | least | same token, same text before | same 64 tokens, continued alone |"
    yield "| --- " * 5 + "|"
    reference = [_hf_logits(exact, text) for text in texts]
    alone = [mine == text for mine, text in zip(_continued_by(half, prompts), texts, strict=True)]
    yield _logits_row("HF bf16", [_hf_logits(half, text) for text in texts], reference, alone)
    for name, backend in backends.items():
        got = [backend.logits(text)[PROMPT - 1 : -1] for text in texts]
        end = exact.generation_config.eos_token_id  # which transformers cannot choose before min_new_tokens
        alone = [continued(backend, text[:PROMPT], NEW, end) == text[PROMPT:] for text in texts]
        yield _logits_row(name, got, reference, alone)
    yield from _differences(backends["native bf16"], texts, reference)


def _logits_row(name: str, got: Sequence[Array], reference: Sequence[Array], alone: Sequence[bool]) -> str:
    mine, theirs = np.concatenate(got), np.concatenate(reference)
    cosines = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    same = (mine.argmax(1) == theirs.argmax(1)).mean()
    return f"| {name} | {cosines.mean():.6f} | {cosines.min():.6f} | {same:.2%} | {sum(alone)} of {len(alone)} |"


def _differences(backend: NativeBackend, texts: Sequence[list[int]], reference: Sequence[Array]) -> Iterator[str]:
    """Yield the margin of float32's best token over its second where the native decoder chooses another."""
    margins, everywhere = [], []
    for text, right in zip(texts, reference, strict=True):
        best = np.sort(right, axis=1)
        margin = best[:, -1] - best[:, -2]
        everywhere.append(margin)
        margins.append(margin[backend.logits(text)[PROMPT - 1 : -1].argmax(1) != right.argmax(1)])
    far, all_ = np.concatenate(margins), np.concatenate(everywhere)
    yield f"\nWhere native bf16 takes another token ({len(far)} of {len(all_)}), float32's two best are"
    yield f"{np.max(far, initial=0):.3f} apart at most; over all tokens the median is {np.median(all_):.3f}."


@torch.no_grad()
def _hf_logits(model: Any, text: Sequence[int]) -> Array:
    logits: Array = model(torch.tensor([list(text)])).logits[0, PROMPT - 1 : -1].float().numpy()
    return logits


def _continued_by(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the prompts followed by transformers' greedy tokens; they have one length, so none is padded."""
    ids = torch.tensor(prompts)
    texts: list[list[int]] = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    ).tolist()
    return texts


def _perplexities(half: Any, backends: Mapping[str, NativeBackend], tokens: Sequence[int]) -> Iterator[str]:
    windows = [list(tokens[start : start + WINDOW]) for start in range(0, WINDOWS * WINDOW, WINDOW)]
    yield f"\nWikiText-2, perplexity of {WINDOWS} windows of {WINDOW} tokens\n"
    yield "| arm | perplexity | against native bf16 |\n| --- | --- | --- |"
    with torch.no_grad():
        losses = [_loss(half(torch.tensor([window])).logits[0].float().numpy(), window) for window in windows]
    yield f"| HF bf16 | {np.exp(np.mean(losses)):.3f} | |"
    first = None
    for name, backend in backends.items():
        value = float(np.exp(np.mean([_loss(backend.logits(window), window) for window in windows])))
        first = first or value
        yield f"| {name} | {value:.3f} | {value / first - 1:+.3%} |"


def _loss(logits: Array, window: Sequence[int]) -> float:
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]), torch.tensor(window[1:])))


def _answers(backends: Mapping[str, NativeBackend], tokenizer: Any, questions: str) -> Iterator[str]:
    task, examples = GENERATED["equation"], load_examples(questions, DEFAULT_TEMPLATE, tokenizer)
    prompts = [tokenizer(prompt_of(example))["input_ids"] for example in examples]
    yield f"\nMAWPS, {len(examples)} questions the adapter was not trained on\n"
    yield "| arm | right | points, 95 % interval | seconds |\n| --- | --- | --- | --- |"
    first: list[bool] = []
    for name, backend in backends.items():
        start = time.perf_counter()
        texts = [_answer(backend, prompt, tokenizer) for prompt in prompts]
        seconds = time.perf_counter() - start
        right = [task.is_right(text, number) for text, number in zip(texts, task.answers(examples), strict=True)]
        first = first or right
        yield f"| {name} | {np.mean(right):.1%} | {points(paired_difference([right], [first]))} | {seconds:.0f} |"


def _answer(backend: NativeBackend, prompt: Sequence[int], tokenizer: Any) -> str:
    """Return the continuation up to the end of its first line that is not empty."""
    backend.drop(0)
    logits = backend.prefill(0, prompt)
    tokens: list[int] = []
    while len(tokens) < ANSWER:
        tokens.append(int(logits.argmax()))
        text: str = tokenizer.decode(tokens)
        if tokens[-1] == tokenizer.eos_token_id or "\n" in text.lstrip():
            break
        logits = backend.step([0], tokens[-1:])[0]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


if __name__ == "__main__":
    main()
