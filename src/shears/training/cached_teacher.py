"""A teacher's targets in files: computed once, read by example and position, in any order.

K positions that predict a label, N kept words.

A folder holds shards of safetensors, each of whole examples in the order of the training set, and a
record. The rest's mass is not stored: it is what the kept words leave to one.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.config.loop import LoopConfig
from shears.data.example import IGNORED
from shears.data.examples import Tokenized, rows_fingerprint
from shears.errors import InputError, first_line
from shears.models.devices import computing_dtype, pick_device, resolved_precision
from shears.progress import is_first_process, launched, meter
from shears.records.artifacts import read_object, sync_path, write_json
from shears.records.folders import free_bytes
from shears.records.version import __version__
from shears.training.distillation import Teacher, TopK
from shears.training.losses import labelled_positions
from shears.training.processes import num_processes, raise_in_all, shared_folder, wait
from shears.training.teacher import LiveTeacher, TeacherSource, targets_folder
from shears.training.trainer import BLANK, Collator, collator_of

logger = logging.getLogger(__name__)

RECORD = "teacher.json"
SHARD = "targets-{:05d}.safetensors"
SHARD_BYTES = 2**28  # an interruption loses at most one shard
SHARD_POSITIONS = 2**15  # a minute or two of a small teacher on one core
BATCH = 16  # examples that the teacher reads together
SMALL_VOCABULARY = 2**16  # words that 16 bits number
ROUNDING = 0.01  # a sum over pieces of a vocabulary may leave the logarithm of a probability above 0
CHECKED_AT_ONCE = 2**14  # positions, in memory as 64-bit numbers


@dataclass(frozen=True)
class TargetCacheKey:
    """Key of cached targets: teacher, arithmetic, kept words; `key` adds the examples' hash."""

    teacher_fingerprint: str
    precision: str
    top_k: int

    def key(self, rows: Sequence[Tokenized]) -> dict[str, Any]:
        """Return it with the hash of the examples' tokens and labels, as plain data."""
        return {**vars(self), "data_fingerprint": rows_fingerprint(rows)}


def bytes_per_position(top_k: int, num_words: int) -> int:
    """Return the bytes of one position's targets in the files; a vocabulary has `num_words`."""
    return min(top_k, num_words) * (2 + _index_dtype(num_words).itemsize)


def _index_dtype(num_words: int) -> torch.dtype:
    """Return the dtype of the numbers of words: 16 bits where they suffice, read without a sign."""
    return torch.int16 if num_words <= SMALL_VOCABULARY else torch.int32


class Places:
    """Places of a training set's targets: the positions that predict a label, in order."""

    def __init__(self, rows: Sequence[Tokenized]) -> None:
        labels = torch.tensor([label for row in rows for label in row.labels])
        predicting = torch.nn.functional.pad(labels[1:] != IGNORED, (0, 1))  # the first label of a row is IGNORED
        lengths = torch.tensor([0, *(len(row.input_ids) for row in rows)])
        self._starts = lengths.cumsum(0)
        before = torch.nn.functional.pad(predicting.cumsum(0), (1, 0))
        self._places = torch.where(predicting, before[:-1], -1)
        self.firsts: list[int] = before[self._starts].tolist()
        """The place of every example's first position, and the number of all places."""

    def of_example(self, number: int) -> range:
        """Return the places of an example."""
        return range(self.firsts[number], self.firsts[number + 1])

    def __len__(self) -> int:
        """Return the number of places."""
        return self.firsts[-1]

    def of(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Int[Tensor, " K"]:
        """Return the places of a batch's wanted positions; -1 for one without a label."""
        examples = torch.arange(len(wanted), device=wanted.device)[:, None].expand(wanted.shape)
        numbers = batch["numbers"][batch.get("examples", examples)[wanted].clamp(min=0)].cpu()
        positions = batch["position_ids"][wanted].cpu()
        places = self._places[self._starts[numbers.clamp(min=0)] + positions]
        return torch.where(numbers == BLANK, -1, places)


class CachedTeacher:
    """Gives the targets in a folder, whose files are mapped into memory.

    InputError where they are not those of the examples: a shard is missing, torn or of another
    shape or dtype, or holds what no word or probability of `top_k` of `num_words` words can be.
    """

    def __init__(self, folder: Path, rows: Sequence[Tokenized], top_k: int, num_words: int) -> None:
        num_shards = read_object(folder / RECORD).get("num_shards")
        if not isinstance(num_shards, int):
            raise InputError(f"{RECORD} must say num_shards, got {num_shards!r}")
        self._places = Places(rows)
        self._files = [_read_shard(_path(folder, index), top_k, num_words) for index in range(num_shards)]
        sizes = [len(file["log_probs"]) for file in self._files]
        if sum(sizes) != len(self._places):
            raise InputError(f"the shards must hold {len(self._places)} positions, got {sum(sizes)}")
        self._ends = torch.tensor(sizes).cumsum(0)

    def targets(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> TopK:
        """Return the targets of the wanted positions; arbitrary ones for a position without a label."""
        places = self._places.of(batch, wanted).clamp(min=0)
        device = wanted.device
        indices = _word_numbers(self._gathered("indices", places).to(device))
        return TopK(indices, self._gathered("log_probs", places).to(device, torch.float32))

    def _gathered(self, name: str, places: Int[Tensor, " K"]) -> Tensor:
        shards = torch.searchsorted(self._ends, places, right=True)
        parts = [self._files[shard][name] for shard in range(len(self._files))]
        result = torch.empty((len(places), parts[0].shape[1]), dtype=parts[0].dtype)
        for shard in shards.unique().tolist():
            here = shards == shard
            first = int(self._ends[shard]) - len(parts[shard])
            result[here] = parts[shard][places[here] - first]
        return result


def _read_shard(path: Path, top_k: int, num_words: int) -> dict[str, Tensor]:
    """Return a shard's tensors, mapped into memory; InputError if they are damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path.name} must be a whole shard: {first_line(error)}") from error
    forms = {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in tensors.items()}
    expected = {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in _empty(0, top_k, num_words).items()}
    if forms != expected or len({len(tensor) for tensor in tensors.values()}) != 1:
        raise InputError(f"{path.name} must hold tensors of {min(top_k, num_words)} words a position, it does not")
    pieces = (_word_numbers(piece) for piece in tensors["indices"].split(CHECKED_AT_ONCE))
    if not all(bool(((piece >= 0) & (piece < num_words)).all()) for piece in pieces):
        raise InputError(f"{path.name} must hold words below {num_words}, it has others")
    if tensors["log_probs"].numel() and not float(tensors["log_probs"].max()) <= ROUNDING:  # nan is not
        raise InputError(f"{path.name} must hold logarithms of probabilities, it has others")
    return tensors


def _word_numbers(indices: Int[Tensor, "K N"]) -> Int[Tensor, "K N"]:
    """Return the numbers of words as 64 bits; those of 16 bits are read without a sign."""
    return indices.to(torch.int64) & (SMALL_VOCABULARY - 1 if indices.dtype == torch.int16 else -1)


def open_teacher(
    source: TeacherSource,
    pad_id: int,
    rows: Sequence[Tokenized],
    settings: LoopConfig,
    *,
    seen: Collection[int] | None = None,
) -> Teacher:
    """Return the teacher of a training on `rows` of `settings.data`: in memory, or cached.

    For cached targets it is loaded only where some are missing, before the student needs its
    memory, and computes as training does. Its batches are filled up by `pad_id`. `seen` are the
    numbers of the examples that will be asked for, by default all: no others are computed.
    """
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    dtype = computing_dtype(settings.precision, device)
    if not settings.teacher_top_k:
        return LiveTeacher(source.load(dtype, settings.device), precision)
    request = TargetCacheKey(source.fingerprint, precision, settings.teacher_top_k)
    folder = targets_folder(settings.data)
    if seen is not None and len(seen) < len(rows):
        if (kept := _kept(folder, rows, request, source.num_words)) is not None:
            return kept
        rows = [
            row if number in seen else Tokenized(row.input_ids, [IGNORED] * len(row.labels))
            for number, row in enumerate(rows)
        ]

    def load() -> tuple[LiveTeacher, Collator]:
        network = source.load(dtype, settings.device)
        collate = collator_of(network, pad_id)  # tried as it was loaded
        return LiveTeacher(network, precision), collate

    return cache_targets(folder, rows, request, source.num_words, load)


def _folder_of(folder: Path, key: Mapping[str, Any]) -> Path:
    """Return where the targets with a key lie, or will."""
    return folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _kept(folder: Path, rows: Sequence[Tokenized], request: TargetCacheKey, num_words: int) -> CachedTeacher | None:
    """Return the targets that an earlier training left; None if there are none.

    Damaged ones are deleted, which one line says. All processes come to the same result.
    """
    output = _folder_of(folder, request.key(rows))
    if not output.exists():
        return None

    def read() -> CachedTeacher:
        return CachedTeacher(output, rows, request.top_k, num_words)

    try:
        teacher = raise_in_all(read)
    except InputError as error:
        logger.warning("the teacher's targets in %s are damaged, they are computed anew: %s", output, error)
        if is_first_process():
            shutil.rmtree(output)
        wait()  # no process may find what the first one deletes
        return None
    logger.info("taking the teacher's targets from %s", output)
    return teacher


def cache_targets(
    folder: Path,
    rows: Sequence[Tokenized],
    request: TargetCacheKey,
    num_words: int,
    open_teacher: Callable[[], tuple[Teacher, Collator]],
) -> CachedTeacher:
    """Return the cached targets of a training set's labels; compute those missing below `folder`.

    The folder of the targets is named by all that decides them. `open_teacher` loads the teacher
    and says how its batches are made; it is called only if targets are missing, and what it
    returned is freed. An interruption loses one shard; several processes compute shards in turn.
    InputError where the disk has no room.
    """
    if (kept := _kept(folder, rows, request, num_words)) is not None:
        return kept
    key = request.key(rows)
    output = _folder_of(folder, key)
    places = Places(rows)
    size = bytes_per_position(request.top_k, num_words)
    shards = list(_shards(places.firsts, max(min(SHARD_BYTES // size, SHARD_POSITIONS), 1)))
    raise_in_all(lambda: _check_room(folder, len(places), size))
    folder.mkdir(parents=True, exist_ok=True)
    with _without_empty(folder), shared_folder(output, key, resume=True) as work:
        _write_shards(work, rows, shards, request, num_words, open_teacher)
        if is_first_process():
            record = {
                "shears_version": __version__,
                **key,
                "num_words": num_words,
                "num_positions": len(places),
                "bytes_per_position": size,
                "num_shards": len(shards),
            }
            write_json(work / RECORD, record)
    wait()  # for the first process, which renames the folder
    return CachedTeacher(output, rows, request.top_k, num_words)


@contextmanager
def _without_empty(folder: Path) -> Iterator[None]:
    """Delete a folder that a refusal, as of a teacher that is not finite, leaves empty."""
    try:
        yield
    except InputError:
        if is_first_process() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _shards(firsts: Sequence[int], most: int) -> Iterator[range]:
    """Yield the examples of every shard: at least one, or as many as have `most` places."""
    start = 0
    for end in range(1, len(firsts)):
        if end + 1 == len(firsts) or firsts[end + 1] - firsts[start] > most:
            yield range(start, end)
            start = end


def _check_room(folder: Path, positions: int, size: int) -> None:
    free = free_bytes(folder)
    needed = positions * size
    logger.info("caching a teacher's targets: %d positions x %d bytes = %.1f MB", positions, size, needed / 1e6)
    if needed > free:
        raise InputError(
            f"the teacher's targets need {needed / 1e6:,.0f} MB ({positions:,} positions x {size:,} bytes) below "
            f"{folder}, where {free / 1e6:,.0f} MB are free; free some space, or take a smaller teacher_top_k"
        )


def _write_shards(
    work: Path,
    rows: Sequence[Tokenized],
    shards: Sequence[range],
    request: TargetCacheKey,
    num_words: int,
    open_teacher: Callable[[], tuple[Teacher, Collator]],
) -> None:
    """Write this process's shards that are not there yet."""
    process = launched()[0]
    places = Places(rows)
    sizes = [places.firsts[shard.stop] - places.firsts[shard.start] for shard in shards]
    own = range(process, len(shards), num_processes())
    missing = [i for i in own if not _is_whole(_path(work, i), sizes[i], request.top_k, num_words)]
    if not missing:
        return
    teacher, collate = open_teacher()
    labelled = {index: [number for number in shards[index] if places.of_example(number)] for index in missing}
    tokens = {index: sum(len(rows[number].input_ids) for number in labelled[index]) for index in missing}
    with meter("teacher", sum(tokens.values()), "tokens") as progress:
        for index in missing:
            batches = _batches(rows, labelled[index], collate)
            first = places.firsts[shards[index].start]
            tensors = _empty(sizes[index], request.top_k, num_words)
            for numbers, batch in batches:
                _put(tensors, teacher, batch, places, first)
                progress.advance(sum(len(rows[number].input_ids) for number in numbers))
            _save(tensors, _path(work, index))


def _is_whole(path: Path, size: int, top_k: int, num_words: int) -> bool:
    """Tell whether an interrupted run left a shard of `size` positions; a damaged one is warned of."""
    if not path.exists():
        return False
    try:
        return len(_read_shard(path, top_k, num_words)["log_probs"]) == size
    except InputError as error:
        logger.warning("a shard of the teacher's targets is damaged, it is computed anew: %s", error)
        return False


def _path(work: Path, index: int) -> Path:
    return work / SHARD.format(index)


def _batches(
    rows: Sequence[Tokenized], numbers: Sequence[int], collate: Collator
) -> Iterator[tuple[Sequence[int], dict[str, Tensor]]]:
    for start in range(0, len(numbers), BATCH):
        some = numbers[start : start + BATCH]
        yield some, collate([(number, rows[number]) for number in some])


def _empty(count: int, top_k: int, num_words: int) -> dict[str, Tensor]:
    words = min(top_k, num_words)
    return {
        "indices": torch.empty((count, words), dtype=_index_dtype(num_words)),
        "log_probs": torch.empty((count, words), dtype=torch.float16),
    }


def _put(tensors: dict[str, Tensor], teacher: Teacher, batch: dict[str, Tensor], places: Places, first: int) -> None:
    """Write the targets of a batch to their places in a shard that begins at the place `first`."""
    wanted = labelled_positions(batch["labels"])
    at = places.of(batch, wanted)
    distribution = teacher.targets(batch, wanted)
    kept = distribution if isinstance(distribution, TopK) else distribution.top_k(tensors["indices"].shape[1])
    values = {"indices": kept.indices, "log_probs": kept.log_probs}
    labelled = at >= 0
    for name, tensor in tensors.items():
        tensor[at[labelled] - first] = values[name].cpu()[labelled].to(tensor.dtype)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary)
    sync_path(temporary)
    temporary.rename(path)
