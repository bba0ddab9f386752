"""What a cache of a teacher's likeliest words loses against the teacher itself, by the number of words.

    python benchmarks/teacher_top_k.py smollm2-135m sparse --data text.txt --tokens 1024

For every number of words: bytes a position in the files, the mean mass of the words that are kept, the divergence of
the sparse model from the dense one, and the relative error of the divergence's gradient in one linear in the middle.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from shears.data.calibration import text_tokens
from shears.data.example import IGNORED, Tokenized
from shears.models.load import load_model, load_tokenizer
from shears.training.cached_teacher import Asked, bytes_per_position, cache_targets
from shears.training.distillation import TopK
from shears.training.live import LiveTeacher
from shears.training.losses import labelled_positions
from shears.training.teacher import find_teacher
from shears.training.teaching import Teaching
from shears.training.trainer import Collator

LENGTH = 256  # tokens of a sequence


def main() -> None:
    """Print a line for the teacher itself and one for every number of words."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dense")
    parser.add_argument("sparse")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--words", type=int, nargs="+", default=[16, 64, 256])
    arguments = parser.parse_args()
    source = find_teacher(arguments.dense)
    ids = text_tokens(arguments.data, load_tokenizer(arguments.dense))[: arguments.tokens]
    pieces = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    rows = [Tokenized(piece, [IGNORED, *piece[1:]]) for piece in pieces]
    collate = Collator(0, None)
    student = load_model(arguments.sparse, "fp32").requires_grad_(False)
    live = LiveTeacher(source.load("fp32"), "fp32")
    divergence, exact = loss_and_gradient(Teaching(live, 1.0), student, collate, rows)
    print(f"teacher itself: divergence {divergence:.4f}")
    for words in arguments.words:
        asked = Asked("measured", "fp32", words)
        with tempfile.TemporaryDirectory() as folder:
            cached = cache_targets(Path(folder), rows, asked, source.num_words, lambda: (live, collate))
            divergence, gradient = loss_and_gradient(Teaching(cached, 1.0), student, collate, rows)
            mass = mean_mass(cached, collate, rows)
        error = float((gradient - exact).norm() / exact.norm())
        size = bytes_per_position(words, source.num_words)
        print(f"{words} words: {size} bytes, mass {mass:.4f}, divergence {divergence:.4f}, gradient error {error:.4f}")


def loss_and_gradient(teaching, student, collate, rows):  # type: ignore[no-untyped-def]
    """Return the mean divergence of a position, and the gradient of the sum in the middle block's last linear."""
    blocks = student.config.num_hidden_layers
    weight = student.get_parameter(f"model.layers.{blocks // 2}.mlp.down_proj.weight").requires_grad_()
    gradient = torch.zeros_like(weight)
    total, count = 0.0, 0
    for number, row in enumerate(rows):
        losses = teaching.losses(student, collate([(number, row)]), 1.0, in_pieces=True).losses
        gradient += torch.autograd.grad(losses.sum(), weight)[0]
        total += float(losses.detach().sum())
        count += len(losses)
    return total / count, gradient


def mean_mass(cached, collate, rows):  # type: ignore[no-untyped-def]
    """Return the mean probability of all kept words together."""
    masses = []
    for number, row in enumerate(rows):
        batch = collate([(number, row)])
        distribution = cached.targets(batch, labelled_positions(batch["labels"]))
        assert isinstance(distribution, TopK)
        masses.append(distribution.log_probs.exp().sum(-1))
    return float(torch.cat(masses).mean())


if __name__ == "__main__":
    main()
