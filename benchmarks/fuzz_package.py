"""Mutated package files: each is refused in one line or reads within its bounds; none crashes.

    python -m benchmarks.fuzz_package                      # 100,000 mutations
    python -m benchmarks.fuzz_package --count 5000 --first 7000000
    python -m benchmarks.fuzz_package --only 4711          # one mutation again, in this process

An accepted file is checked by a slow second implementation of the layout, unpacked, and, with the C++ kernels,
multiplied. Each batch of mutations runs in a separate process, so that a crash is counted and its mutation named.

Under AddressSanitizer, a kernel that reads out of bounds ends the batch. Replace the extension by one that is built so
(`pip install -e .` restores the ordinary one):

    cmake -S src/shears/runtime/native/csrc -B build/asan -DSHEARS_ASAN=ON -DPython_EXECUTABLE=$(which python)
    cmake --build build/asan && cp build/asan/_native*.so src/shears/runtime/native/
    ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$(gcc -print-file-name=libasan.so) python -m benchmarks.fuzz_package
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.mutations import SEEDS, mutated, write_seed
from benchmarks.report import parser_of
from shears.checkpoints.packed.file import PACKAGE_FILE, Package, read_package
from shears.checkpoints.packed.layout import GROUPS, PANEL, PackedMatrix, dense
from shears.errors import InputError
from shears.quantization.grid import BLOCK
from shears.runtime import kernels_available

BATCH = 5000


def main() -> None:
    """Run batches and print how many mutations had which outcome."""
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch:
        print(json.dumps(run_batch(arguments.first, arguments.count, Path(arguments.batch))))
    elif arguments.only is not None:
        print(json.dumps(run_batch(arguments.only, 1, None)))
    else:
        sys.exit(_run(arguments.first, arguments.count))


def _run(first: int, count: int) -> int:
    started = time.monotonic()
    total = Counter[str]()
    crashes = list[str]()
    for start in range(first, first + count, BATCH):
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "number"
            size = min(BATCH, first + count - start)
            command = [sys.executable, "-m", "benchmarks.fuzz_package", "--batch", str(note), "--first", str(start)]
            done = subprocess.run([*command, "--count", str(size)], capture_output=True, text=True, check=False)
            if done.returncode:
                crashes.append(f"mutation {note.read_text()}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
            else:
                total.update(json.loads(done.stdout))
    kernels = "with" if kernels_available() else "without"
    print(f"{count} mutations from {first}, {kernels} C++ kernels, {time.monotonic() - started:.0f} s")
    for reason, number in total.most_common():
        print(f"  {number:7d}  {reason}")
    print(f"  {len(crashes):7d}  crashed or read wrongly")
    print("\n".join(crashes))
    return bool(crashes)


def run_batch(first: int, count: int, note: Path | None) -> dict[str, int]:
    """Return how many mutations had which outcome; the note file holds the number of the current one."""
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        seeds = [write_seed(place / str(number), number) for number in range(len(SEEDS))]
        for number in range(first, first + count):
            if note is not None:
                note.write_text(str(number))
            outcomes[outcome(mutated(seeds, number), place, verify=number % 4 == 0)] += 1
    return dict(outcomes)


def outcome(data: bytes, folder: Path, verify: bool) -> str:
    """Return the outcome for a package file with these bytes; AssertionError if it is accepted wrongly."""
    (folder / PACKAGE_FILE).unlink(missing_ok=True)  # a new file, because the old one may still be mapped
    (folder / PACKAGE_FILE).write_bytes(data)
    try:
        package = read_package(folder, verify=verify)
    except InputError as error:
        return _refused(str(error), folder)
    use(package)
    return "accepted, and within its bounds"


def _refused(message: str, folder: Path) -> str:
    assert "\n" not in message
    text = message.replace(str(folder / PACKAGE_FILE), "").removeprefix(" must be a whole ")
    return f"refused: {' '.join(text.split()[:5])}"


def use(package: Package) -> None:
    """Read everything in an accepted package, as a runtime would."""
    for matrix in package.packed.values():
        check_bounds(matrix)
        dense(matrix)
        if kernels_available():
            _multiply(matrix)
    for _, tensor in package.model_tensors():
        tensor.sum()
    for tensor in package.adapter().values():
        tensor.sum()


def check_bounds(matrix: PackedMatrix) -> None:
    """Assert everything that the kernels rely on, bit by bit."""
    group = GROUPS[matrix.values_dtype]
    shape = (-(-matrix.rows // PANEL), -(-matrix.cols // group), 2 * group)
    if matrix.masks is None or matrix.offsets is None:
        assert matrix.masks is matrix.offsets is None
        assert matrix.scales is not None
        assert matrix.values.nbytes == shape[0] * shape[1] * (64 if matrix.values_dtype == "int8" else 32)
    else:
        _check_masks(matrix, matrix.masks, matrix.offsets.tolist(), shape)
    if matrix.values_dtype == "int4":
        _check_scales(matrix, shape[0])


def _check_masks(matrix: PackedMatrix, masks: Tensor, offsets: list[int], shape: tuple[int, int, int]) -> None:
    """Assert that offsets count the bits of masks of this shape, none of them beyond the weight."""
    assert offsets[0] == 0
    assert offsets[-1] == matrix.values.numel()
    assert masks.shape == shape
    panels, _, size = shape
    group = size // 2
    assert len(offsets) == panels + 1
    for panel in range(panels):
        count = 0
        for j, word in enumerate(masks[panel].tolist()):
            bits = int.from_bytes(bytes(word), "little")
            count += (bits.bit_count() + 1) // 2 if matrix.values_dtype == "int4" else bits.bit_count()
            for bit in range(16 * group):
                if bits >> bit & 1:
                    assert PANEL * panel + bit // group < matrix.rows
                    assert group * j + bit % group < matrix.cols
        assert offsets[panel + 1] - offsets[panel] == count


def _check_scales(matrix: PackedMatrix, panels: int) -> None:
    """Assert that an int4 weight has a finite scale and a zero point for each row and block."""
    assert matrix.scales is not None
    assert matrix.zeros is not None
    blocks = -(-matrix.cols // BLOCK)
    assert matrix.scales.shape == (panels, blocks, PANEL)
    assert matrix.zeros.shape == (panels, blocks, PANEL // 2)
    assert matrix.scales.dtype == torch.float16
    assert all(0 <= scale < 65520 for scale in matrix.scales.flatten().tolist())


def _multiply(matrix: PackedMatrix) -> None:
    from benchmarks.sparse_linear import multiply
    from shears.runtime.native import kernels as native

    loaded = native.sparse_matrix(matrix)
    for tokens in (1, 3):
        multiply(loaded, torch.ones(tokens, matrix.cols), native.Pool(1))


if __name__ == "__main__":
    main()
