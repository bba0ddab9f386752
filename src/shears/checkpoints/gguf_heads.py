"""A head that is the embeddings once more: one matrix that a GGUF file holds twice, rounded two ways.

llama.cpp quantizes head and embeddings to types of their own, and some converters write a tied head
beside the embeddings. Both are then roundings of one matrix.

Shapes: R rows that are compared, I width of the model.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from shears.checkpoints.gguf_file import GgufFile, GgufTensor, can_dequantize

EMBEDDINGS = "token_embd.weight"
HEAD = "output.weight"
TOKEN_TYPES = "tokenizer.ggml.token_type"
TRAINED_ALONE = (3, 4)  # control and user-defined tokens: their rows may be trained while all others stay
EVERY = 64  # of the other rows, one in so many is compared
SPREAD = 3.0
"""Relative error of a row, times 2^bits. Rounding normal weights, 32 to a scale, to b bits costs about
1.3 / 2^b; a single row may have twice that."""
FARTHEST = 0.5  # two unrelated matrices of one size are 1.4 apart
SMALL = 0.1  # rows below this share of the mean norm are compared with this share of it
OF_FLOATS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}


@dataclass(frozen=True)
class Twins:
    """Two roundings of one matrix: the more exact one, the other, and their relative difference."""

    kept: GgufTensor
    left_out: GgufTensor
    difference: float

    def __str__(self) -> str:
        names = {EMBEDDINGS: "embeddings", HEAD: "head"}
        kept = f"{names[self.kept.name]} {self.kept.kind.name}"
        left_out = f"{names[self.left_out.name]} {self.left_out.kind.name}"
        return f"{kept} and {left_out} are one matrix (difference {100 * self.difference:.1f} %)"


def find_twins(file: GgufFile) -> Twins | None:
    """Return head and embeddings of a file if both are one matrix; None where the head is its own or absent.

    Compared are one row in 64, and every row of a control token. OSError where the file cannot be read.
    """
    by_name = {tensor.name: tensor for tensor in file.tensors}
    pair = [by_name[name] for name in (HEAD, EMBEDDINGS) if name in by_name]
    if len(pair) < 2 or pair[0].shape != pair[1].shape or not all(can_dequantize(tensor.kind) for tensor in pair):
        return None
    rows = _compared(file, pair[0].shape[0])
    head, embeddings = (_rows(file.path, tensor, rows) for tensor in pair)
    apart = np.linalg.norm(head - embeddings, axis=1)
    norms = np.linalg.norm(head, axis=1)
    bound = min(SPREAD * 2.0 ** -min(bits(tensor.kind) for tensor in pair), FARTHEST)
    if not np.all(apart <= bound * np.maximum(norms, SMALL * norms.mean())):  # nan is no twin
        return None
    kept, left_out = sorted(pair, key=lambda tensor: (bits(tensor.kind), tensor.num_bytes), reverse=True)
    size = float(np.linalg.norm(norms))
    return Twins(kept, left_out, float(np.linalg.norm(apart)) / size if size else 0.0)


def bits(kind: GGMLQuantizationType) -> int:
    """Return the bits of one weight, by which two types compare: 5 for Q5_0 and Q5_K, 11 for F16."""
    return OF_FLOATS.get(kind.name) or int(re.findall(r"\d+", kind.name)[0])


def _compared(file: GgufFile, num_rows: int) -> NDArray[np.int64]:
    """Return the rows to compare, in order."""
    types = file.metadata.get(TOKEN_TYPES)
    known = np.array(types if isinstance(types, list) else [], np.int64)[:num_rows]
    alone = np.flatnonzero(np.isin(known, TRAINED_ALONE))
    return np.union1d(np.arange(0, num_rows, EVERY), alone)


def _rows(path: Path, tensor: GgufTensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return some rows of a matrix, dequantized: (R, I)."""
    shape = (tensor.shape[0], tensor.row_bytes)
    stored = np.memmap(path, np.uint8, "r", tensor.offset, shape)
    result: NDArray[np.float32] = dequantize(np.ascontiguousarray(stored[rows]), tensor.kind).astype(np.float32)
    return result
