"""The method of Shears in one file, with torch and transformers alone: prune, train, choose, merge.

    shears init smollm2-135m                                     # prints a folder; any Llama, Qwen or Mistral will do
    python examples/shears_in_one_file.py FOLDER train.jsonl test.jsonl merged

The files hold rows of {"prompt": ..., "completion": ...}; the demo's are in shears.data.rows: a line of JSON for each
row of `read_rows("arithmetic:train")` and of `read_rows("arithmetic:test")`.
In seven minutes on two cores 73 % of 30 are right. `merged` is a model folder with half zeros in its blocks.

1. Wanda (arXiv 2306.11695) zeroes half of every linear of the decoder blocks, without training: `prune`.
2. Neural low-rank adapter search (Shears, arXiv 2404.10934, section 3.2) trains one adapter of several ranks on the
   frozen sparse model; every step trains one random sub-adapter: `add_adapter`, `train`.
3. The middle ranks are the sub-adapter (the heuristic of section 3.3), as good as what a search finds: `heuristic`.
4. The adapter's product is masked by the zeros of the weight, so that merging keeps every zero (SparsePEFT, arXiv
   2410.03750, section 3.2): `ElasticLinear.merged`.

`tests/examples/test_one_file.py` holds the masks, the adapter and the merged weights equal to those of the library.

Shapes: B examples, T tokens, I input and O output features of a linear, R the largest rank, r <= R an active one.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

SPARSITY = 0.5
RANKS = (32, 24, 16)  # the largest first; each is used in the same adapter by taking its first components
GROUPS = ("q_proj+k_proj+v_proj", "up_proj", "down_proj")  # linears of a block that share one rank, as in the paper
IGNORED = -100  # the label of a token without loss


# 1. Wanda: drop the weights whose products are small on real inputs
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def prune(model: Any, batches: Sequence[Tensor], sparsity: float = SPARSITY) -> None:
    """Prune the linears of the decoder blocks in place, block by block; `batches` are calibration tokens (B T).

    A block is measured while it is dense, on what the pruned blocks before it give.
    """
    inputs = first_inputs(model, batches)
    for block in model.model.layers:
        norms = input_norms(block, inputs)
        for linear, norm in norms.items():
            linear.weight[lowest_in_rows(wanda_scores(linear.weight, norm), sparsity)] = 0.0
        inputs = [(block(hidden, **others), others) for hidden, others in inputs]


def wanda_scores(weight: Tensor, norm: Tensor) -> Tensor:
    """Return S_oi = |W_oi| ||X_i||_2 (Wanda, eq. 1): O x I weights and I norms give O x I scores."""
    return weight.abs() * norm


def lowest_in_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Return the mask of the lowest scores of every output: weights compete in their row (Wanda, section 3)."""
    order = scores.argsort(dim=1, stable=True)[:, : round(scores.shape[1] * sparsity)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def input_norms(block: nn.Module, inputs: Sequence[tuple[Tensor, dict[str, Any]]]) -> dict[nn.Linear, Tensor]:
    """Return ||X_i||_2 of every input feature of the block's linears over all tokens."""
    squares: dict[nn.Linear, Tensor] = {}

    def add(linear: nn.Linear, args: tuple[Tensor, ...]) -> None:
        seen = args[0].flatten(0, -2).float().square().sum(0).double()
        squares[linear] = squares[linear] + seen if linear in squares else seen

    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(add) for linear in linears]
    for hidden, others in inputs:
        block(hidden, **others)
    for hook in hooks:
        hook.remove()
    return {linear: total.sqrt().float() for linear, total in squares.items()}


class ReachedError(Exception):
    """Ends a forward before the first block, whose inputs are then known."""


def first_inputs(model: Any, batches: Sequence[Tensor]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Return the hidden states that enter the first block (B T H), and its other arguments, of every batch."""
    inputs: list[tuple[Tensor, dict[str, Any]]] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        inputs.append((args[0], keywords))
        raise ReachedError

    hook = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    for batch in batches:
        with suppress(ReachedError):
            model(batch, use_cache=False)
    hook.remove()
    return inputs


# 2. The elastic adapter: one pair of factors, of which the first r components are an adapter of rank r
# ----------------------------------------------------------------------------------------------------------------------


class ElasticLinear(nn.Module):
    """y = (W + P) x + bias with a frozen sparse W and P = (s B[:, :r] A[:r]) * (W != 0), s = alpha / R.

    The scale s is the same at every rank, so that a sub-adapter is a plain cut of the whole (Shears, section 3.2). The
    factors start as in LoRA (arXiv 2106.09685): A random, B zero, so that P is zero.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.linear = linear.requires_grad_(False)
        self.lora_a = nn.Linear(inputs, rank, bias=False)  # R x I
        self.lora_b = nn.Linear(rank, outputs, bias=False)  # O x R
        nn.init.kaiming_uniform_(self.lora_a.weight, a=5**0.5)
        nn.init.zeros_(self.lora_b.weight)
        self.scaling = alpha / rank
        self.rank = rank  # the active one

    def merged(self) -> Tensor:
        """Return W + P (O I): a weight that is zero in W is zero in the sum, whatever the factors are."""
        weight = self.linear.weight
        b = self.lora_b.weight[:, : self.rank] * self.scaling
        return weight + (b @ self.lora_a.weight[: self.rank]) * (weight != 0)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (... I) by the sum at the active rank."""
        return nn.functional.linear(x, self.merged(), self.linear.bias)


Adapter = Mapping[str, Sequence[ElasticLinear]]
"""The adapted linears of every group, such as `layers.0.q_proj+k_proj+v_proj`."""


def add_adapter(model: Any, groups: Sequence[str] = GROUPS, rank: int = RANKS[0], alpha: float = 64.0) -> Adapter:
    """Freeze the model, replace the linears of the groups by elastic ones, and return these."""
    model.requires_grad_(False)
    found: dict[str, list[ElasticLinear]] = {}
    for index, block in enumerate(model.model.layers):
        owner = {part: group for group in groups for part in group.split("+")}
        for path, module in list(block.named_modules()):
            parent, _, name = path.rpartition(".")
            if name in owner and isinstance(module, nn.Linear):
                elastic = ElasticLinear(module, rank, alpha)
                setattr(block.get_submodule(parent), name, elastic)
                found.setdefault(f"layers.{index}.{owner[name]}", []).append(elastic)
    return dict(sorted(found.items()))


def activate(adapter: Adapter, ranks: Mapping[str, int]) -> None:
    """Compute with these ranks of the groups from now on."""
    for group, linears in adapter.items():
        for linear in linears:
            linear.rank = ranks[group]


def random_ranks(adapter: Adapter, ranks: Sequence[int], step: int) -> dict[str, int]:
    """Draw the sub-adapter of a step: a rank for every group, uniformly (Shears, section 3.2)."""
    generator = random.Random(f"ranks/0/{step}")
    return {group: generator.choice(ranks) for group in adapter}


def heuristic(adapter: Adapter, ranks: Sequence[int]) -> dict[str, int]:
    """Return the middle rank of every group (Shears, section 3.3); of two, the smaller."""
    return dict.fromkeys(adapter, ranks[len(ranks) // 2])


def train(
    model: Any, adapter: Adapter, batches: Sequence[Mapping[str, Tensor]],
    ranks: Sequence[int] = RANKS, learning_rate: float = 1e-3, warmup: int = 10,
) -> Iterator[float]:  # fmt: skip
    """Train the adapter, a random sub-adapter on every batch, and yield the losses of the steps.

    The loss is the mean over the labelled tokens of a batch. AdamW's learning rate rises over `warmup` steps and falls
    to zero at the last one.
    """
    factors = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, len(batches))
    model.train()
    for step, batch in enumerate(batches):
        activate(adapter, random_ranks(adapter, ranks, step))
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=False)  # components beyond the rank have a gradient of zero, not none
        yield loss.item()
    model.eval()


# 4. Merging: the sub-adapter disappears into the weights, and no zero is filled
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge(model: Any) -> None:
    """Turn every elastic linear back into a plain one that computes the same."""
    for block in model.model.layers:
        for path, module in list(block.named_modules()):
            if isinstance(module, ElasticLinear):
                parent, _, name = path.rpartition(".")
                module.linear.weight.copy_(module.merged())
                setattr(block.get_submodule(parent), name, module.linear)


def sparsity_of(model: Any) -> float:
    """Return the share of zeros in the linears of the decoder blocks."""
    weights = [module.weight for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


# Data: rows of a prompt and a completion
# ----------------------------------------------------------------------------------------------------------------------


def encode(tokenizer: Any, row: Mapping[str, str]) -> tuple[list[int], list[int]]:
    """Return a row's tokens, an end of sequence behind them, and its labels: only the completion has a loss."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return prompt + completion, [IGNORED] * len(prompt) + completion


def pad(examples: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Return a batch: tokens, attention mask and labels, each B x T, padded on the right."""
    longest = max(len(tokens) for tokens, _ in examples)
    missing = [longest - len(tokens) for tokens, _ in examples]
    return {
        "input_ids": torch.tensor([tokens + [0] * gap for (tokens, _), gap in zip(examples, missing, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in missing]),
        "labels": torch.tensor([labels + [IGNORED] * gap for (_, labels), gap in zip(examples, missing, strict=True)]),
    }


def calibration(examples: Sequence[tuple[list[int], list[int]]], count: int = 8, length: int = 256) -> list[Tensor]:
    """Return sequences of tokens (1 T) of consecutive training examples."""
    tokens = [token for example, _ in examples for token in example][: count * length]
    return list(torch.tensor(tokens)[None].split(length, dim=1))


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, str]]) -> float:
    """Return the share of rows whose greedy continuation has the equation of the completion, its text before `=`."""
    right = 0
    for row in rows:
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right += text.split("=")[0].strip() == row["completion"].split("=")[0].strip()
    return right / len(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Prune, train, choose, merge and save a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument("train", type=Path, help="training rows, JSON Lines")
    parser.add_argument("test", type=Path, help="test rows")
    parser.add_argument("output", type=Path, help="the folder of the merged model")
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, trust_remote_code=False)
    examples = [encode(tokenizer, row) for row in read_rows(arguments.train)]
    test = read_rows(arguments.test)[:30]

    prune(model, calibration(examples))
    print(f"pruned: {sparsity_of(model):.1%} zeros, {accuracy(model, tokenizer, test):.0%} right", flush=True)

    torch.manual_seed(0)
    adapter = add_adapter(model, alpha=128.0)  # half of the product is masked, so alpha is doubled
    order = random.Random(0)
    batches = [pad(order.sample(examples, arguments.batch_size)) for _ in range(arguments.steps)]
    for step, loss in enumerate(train(model, adapter, batches, learning_rate=2e-3), start=1):  # few steps, high rate
        print(f"step {step} of {len(batches)}: loss {loss:.4f}", flush=True)

    activate(adapter, heuristic(adapter, RANKS))
    merge(model)
    print(f"merged: {sparsity_of(model):.1%} zeros, {accuracy(model, tokenizer, test):.0%} right", flush=True)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
