"""What each part of four bits costs: divergence to the unrounded model on answers that a model wrote itself.

    python -m benchmarks.four_bits MODEL ANSWERS.jsonl [--results FILE.jsonl] [--test 6] [--calibration 8]

MODEL is a folder or a name; ANSWERS hold chats as {"messages": [...]} that end with an answer. The second moments of
inputs are measured on the first --calibration chats, divergences on the last --test ones. An arm rounds the linears of
the decoder blocks or the embeddings, the rest stays as it is; all arms read the same tokens. A line holds nats a token,
the share of tokens whose likeliest successor stays the same, and bits a rounded weight. Arms that the results hold are
skipped. Bits: four of a code and 16 of a scale by block, four more of a zero point unless it is 8.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from benchmarks.report import add_row, begin, environment, parser_of, rows_of
from shears.checkpoints.zeros import IN_BLOCK
from shears.models.blocks import linears
from shears.models.load import load_model
from shears.models.ref import load_tokenizer, resolve
from shears.quantization import grid
from shears.quantization.with_inputs import round_with_inputs

Round = Callable[[Tensor, Tensor], Tensor]  # of a weight (O I), by the second moments of its inputs (I I)
SHRUNK = tuple(1 - step / 20 for step in range(10))
AROUND = tuple(1.1 - step / 40 for step in range(20))  # shares of the range, or of the largest weight


class Arm(NamedTuple):
    """A way to round, the bits of a weight that it takes, and which linears it rounds."""

    round: Round
    bits: float
    only: str = ""
    """The name of the linears that are rounded; all without one."""


def int4(weight: Tensor, moments: Tensor, size: int = 128, ratios: tuple[float, ...] = (1.0,), by: str = "") -> Tensor:
    """Round on int4's grid with blocks of `size` inputs, over the best range; `by` weighs errors by inputs."""
    blocks, weights = _blocks(weight, size), _blocks(_weights(moments, by, weight.shape[1]), size)
    low, high = blocks.amin(2, keepdim=True).clamp(max=0), blocks.amax(2, keepdim=True).clamp(min=0)

    def tried() -> Iterator[Tensor]:
        for ratio in ratios:
            scale = ((high - low) * ratio / 15).half().float()
            step = scale.where(scale > 0, 1.0)
            zero = (-low * ratio / step).round().clamp(0, 15)
            yield scale * (((blocks / step).round() + zero).clamp(0, 15) - zero)

    return _best(tried(), blocks, weights, weight.shape)


def centred(
    weight: Tensor, moments: Tensor, size: int = 32, ratios: tuple[float, ...] = (), by: str = "", fit: bool = False
) -> Tensor:
    """Round on Q4_0's grid: zero point 8, a scale of either sign; without `ratios` by llama.cpp's own rule."""
    blocks, weights = _blocks(weight, size), _blocks(_weights(moments, by, weight.shape[1]), size)
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))

    def tried() -> Iterator[Tensor]:
        for ratio in [-each for each in ratios or (1.0,)] + list(ratios):
            scale = (largest * ratio / 8).half().float()
            codes = (blocks / scale.where(scale != 0, 1.0)).round().clamp(-8, 7)
            if fit:
                best = (weights * codes * blocks).sum(2, keepdim=True) / (weights * codes * codes).sum(2, keepdim=True)
                scale = best.nan_to_num().half().float()
                codes = (blocks / scale.where(scale != 0, 1.0)).round().clamp(-8, 7)
            yield scale * codes

    return _best(tried(), blocks, weights, weight.shape)


def int8(weight: Tensor, moments: Tensor) -> Tensor:
    """Round to int8, a scale a row."""
    return grid.quantize(weight, "int8").dense()


def known(weight: Tensor, moments: Tensor) -> Tensor:
    """Round as `shears export --calibration` does."""
    return round_with_inputs(weight, torch.ones_like(weight, dtype=torch.bool), moments).dense()


ARMS: Mapping[str, Arm] = {
    "int4, 128 inputs": Arm(int4, 4.156),
    "128, range searched": Arm(partial(int4, ratios=SHRUNK), 4.156),
    "128, range searched by inputs": Arm(partial(int4, ratios=SHRUNK, by="inputs"), 4.156),
    "128, rounded with known inputs": Arm(known, 4.156),
    "64 inputs": Arm(partial(int4, size=64), 4.312),
    "32 inputs": Arm(partial(int4, size=32), 4.625),
    "32, zero point 8 (Q4_0)": Arm(centred, 4.5),
    "Q4_0, scale searched": Arm(partial(centred, ratios=AROUND), 4.5),
    "Q4_0, scale searched by inputs": Arm(partial(centred, ratios=AROUND, by="inputs"), 4.5),
    "Q4_0, scale searched and fitted by inputs": Arm(partial(centred, ratios=AROUND, by="inputs", fit=True), 4.5),
    "128, zero point 8, searched by inputs": Arm(partial(centred, size=128, ratios=AROUND, by="inputs"), 4.125),
    **{f"int4, only {name}": Arm(int4, 4.156, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"int4, only {name}": Arm(int4, 4.156, name) for name in ("gate_proj", "up_proj", "down_proj")},
    "int8": Arm(int8, 8.0),
}
OUTSIDE: Mapping[str, Arm] = {
    "embeddings int4": Arm(int4, 4.156),
    "embeddings Q4_0": Arm(centred, 4.5),
    "embeddings int8": Arm(int8, 8.0),
}


def main() -> None:
    """Measure every arm that the results lack, and print all."""
    arguments = _arguments()
    begin()
    ref = resolve(arguments.model)
    tokenizer, model = load_tokenizer(ref), load_model(ref, "bf16", "cpu")
    chats = [json.loads(line)["messages"] for line in arguments.answers.read_text().splitlines()]
    calibration = [_tokens(tokenizer, chat)[0] for chat in chats[: arguments.calibration]]
    tested = [_tokens(tokenizer, chat) for chat in chats[-arguments.test :]]
    moments = moments_of(model, calibration)
    modules = _block_linears(model)
    tables = {"embeddings": model.get_input_embeddings()}
    dense = [_log_probabilities(model, *each) for each in tested]
    measured = {row["arm"] for row in rows_of(arguments.results)}
    for name, arm in {**ARMS, **OUTSIDE}.items():
        if name in measured:
            continue
        start = time.monotonic()
        chosen = tables if name in OUTSIDE else {key: each for key, each in modules.items() if key.endswith(arm.only)}
        with _rounded(chosen, moments, arm.round):
            figures = _divergence(model, tested, dense)
        about = {"model": arguments.model.rpartition("/")[2], "arm": name, "bits": arm.bits}
        seconds = round(time.monotonic() - start)
        add_row(arguments.results, {**about, **figures, "seconds": seconds, "environment": environment()})
    print("\n| arm | bits a weight | nats a token | same word, % |\n| --- | --- | --- | --- |")
    for row in rows_of(arguments.results):
        print(f"| {row['arm']} | {row['bits']} | {row['nats']:.4f} | {100 * row['same']:.1f} |")


@torch.no_grad()
def moments_of(model: nn.Module, texts: list[Tensor]) -> dict[str, Tensor]:
    """Return the second moments (I I) of the inputs of every linear of the blocks."""
    sums: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).float()
        sums[name] = sums.get(name, torch.zeros(())) + rows.T @ rows

    with ExitStack() as stack:
        for name, module in _block_linears(model).items():
            stack.callback(module.register_forward_pre_hook(partial(add, name)).remove)
        for text in texts:
            model(text)
    return sums


def _block_linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: each for name, each in linears(model).items() if IN_BLOCK.search(name)}


def _rounded(modules: Mapping[str, nn.Module], moments: Mapping[str, Tensor], rounding: Round) -> ExitStack:
    """Round the weights of some modules until the stack is closed."""
    stack = ExitStack()
    for name, module in modules.items():
        weight = module.get_parameter("weight").data
        stack.callback(weight.copy_, weight.clone())
        weight.copy_(rounding(weight.float(), moments.get(name, torch.zeros(()))))
    return stack


@torch.no_grad()
def _log_probabilities(model: nn.Module, tokens: Tensor, start: int) -> Tensor:
    logits: Tensor = model(tokens).logits[0, start - 1 : -1]
    return logits.float().log_softmax(-1)


def _divergence(model: nn.Module, tested: list[tuple[Tensor, int]], dense: list[Tensor]) -> dict[str, float]:
    nats = same = count = 0.0
    for (tokens, start), wanted in zip(tested, dense, strict=True):
        found = _log_probabilities(model, tokens, start)
        nats += float((wanted.exp() * (wanted - found)).sum())
        same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        count += len(wanted)
    return {"nats": nats / count, "same": same / count, "positions": count}


def _tokens(tokenizer: Any, chat: list[dict[str, str]]) -> tuple[Tensor, int]:
    """Return a chat's tokens, 1 x T, and where its answer starts."""
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    before = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
    return torch.tensor([whole]), len(before)


def _blocks(weight: Tensor, size: int) -> Tensor:
    return pad(weight, (0, -weight.shape[-1] % size)).view(len(weight), -1, size)


def _weights(moments: Tensor, by: str, inputs: int) -> Tensor:
    return moments.diagonal()[None] if by else torch.ones(1, inputs)


def _best(tried: Iterator[Tensor], blocks: Tensor, weights: Tensor, shape: torch.Size) -> Tensor:
    """Return, by block, the rounded weights of least error."""
    best, least = torch.zeros_like(blocks), torch.full_like(blocks[:, :, :1], torch.inf)
    for rounded in tried:
        errors = (weights * (rounded - blocks) ** 2).sum(2, keepdim=True)
        best = torch.where(errors < least, rounded, best)
        least = torch.minimum(errors, least)
    return best.flatten(1)[:, : shape[1]]


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("answers", type=Path)
    parser.add_argument("--results", type=Path, default=Path("four_bits.jsonl"))
    parser.add_argument("--test", type=int, default=6, help="chats of the divergence, the last ones")
    parser.add_argument("--calibration", type=int, default=8, help="chats of the second moments, the first ones")
    return parser.parse_args()


if __name__ == "__main__":
    main()
