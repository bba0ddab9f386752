"""Prune a tiny random model of every architecture; print a Markdown table of the covered weights and of checks.

python -m benchmarks.architectures                  # seconds
python -m benchmarks.architectures --method sparsegpt --only mixtral,gpt_oss
"""

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.tiny import CONFIGS, MORE_CONFIGS, VOCABULARY, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.report import environment, parser_of
from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.models.blockwise.matrices import Matrix, block_matrices, kept_dense
from shears.records.artifacts import SPARSITY
from shears.sparsity.sparsify import sparsify

NUM_SEQUENCES = 8
LENGTH = 32
TARGET = 0.5
HEADER = (
    "| architecture | blocks pruned | routers, dense on purpose | in no linear | weights without a token "
    "| zeros where stated | the rest unchanged | loads and generates |"
)


@dataclass(frozen=True)
class Row:
    """Shares of the block weights that pruning covered, and three checks of the reloaded model."""

    name: str
    pruned: float
    routers: float
    beyond: float
    unreached: int
    exact: bool
    unchanged: bool
    generates: bool

    def __str__(self) -> str:
        shares = " | ".join(f"{100 * share:.1f} %" for share in (self.pruned, self.routers, self.beyond))
        checks = " | ".join("yes" if good else "**no**" for good in (self.exact, self.unchanged, self.generates))
        return f"| {self.name} | {shares} | {self.unreached} | {checks} |"


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--only", default="", help="architectures, separated by commas; by default all")
    words = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{environment()}\n\nmethod {words.method}, {100 * TARGET:g} % of the linears\n\n{HEADER}")
    print("|" + "---|" * (HEADER.count("|") - 1))
    for name in words.only.split(",") if words.only else [*CONFIGS, *MORE_CONFIGS]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(measure(name, Path(folder), method=words.method), flush=True)
            except InputError as error:
                print(f"| {name} | refused: {error} |" + " |" * (HEADER.count("|") - 3), flush=True)


def measure(name: str, folder: Path, **settings: Any) -> Row:
    """Save a tiny model, prune it, load both again and compare."""
    tiny_model(name).save_pretrained(folder / "base")
    ids = _calibration(folder / "ids.jsonl")
    size: dict[str, Any] = {"num_samples": NUM_SEQUENCES, "sequence_length": LENGTH, "sparsity": TARGET}
    sparse = sparsify(folder / "base", folder / "sparse", calibration=str(ids), **size, **settings)
    record = json.loads((sparse / SPARSITY).read_text())
    before, after = (
        AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False).eval()
        for place in (folder / "base", sparse)
    )
    blocks = decoder_blocks(after)[1]
    total = sum(weight.numel() for name, weight in blocks.named_parameters() if _is_weight(name, weight))
    covered = sum(linear["shape"][0] * linear["shape"][1] for linear in record["linears"].values())
    routers = sum(sum(kept_dense(block).values()) for block in blocks)
    pruned = [matrix for matrix in _matrices(after) if matrix.linear in record["linears"]]
    return Row(
        name=name,
        pruned=covered / total,
        routers=routers / total,
        beyond=1 - (covered + routers) / total,
        unreached=len(record["by_magnitude"]),
        exact=_zeros(after, pruned) == {key: linear["zeros"] for key, linear in record["linears"].items()},
        unchanged=_unchanged(before, after, pruned),
        generates=_generates(after),
    )


def _is_weight(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and not name.endswith("bias")  # experts have stacks of biases


def _calibration(path: Path) -> Path:
    """Write rows of random token ids."""
    generator = random.Random(0)
    rows = ([generator.randrange(VOCABULARY - 1) for _ in range(LENGTH)] for _ in range(NUM_SEQUENCES))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return path


def _matrices(model: PreTrainedModel) -> Iterator[Matrix]:
    prefix, blocks = decoder_blocks(model)
    for index, block in enumerate(blocks):
        yield from block_matrices(f"{prefix}.{index}", block)


def _zeros(model: PreTrainedModel, matrices: list[Matrix]) -> dict[str, int]:
    zeros: dict[str, int] = {}
    for matrix in matrices:
        name = matrix.linear
        zeros[name] = zeros.get(name, 0) + count_zeros(matrix.view(model))
    return zeros


def _unchanged(before: PreTrainedModel, after: PreTrainedModel, pruned: list[Matrix]) -> bool:
    """Return whether every tensor that is not pruned is bitwise the same as before."""
    touched = {after.get_parameter(matrix.parameter).data_ptr() for matrix in pruned}
    known = before.state_dict()
    return all(
        torch.equal(tensor, known[name])
        for name, tensor in after.state_dict().items()
        if tensor.data_ptr() not in touched
    )


@torch.no_grad()
def _generates(model: PreTrainedModel) -> bool:
    prompt = torch.arange(1, 6)[None]
    tokens = model.generate(prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)  # type: ignore[operator]
    return tokens.shape == (1, 9) and bool(torch.isfinite(model(tokens).logits).all())


if __name__ == "__main__":
    main()
