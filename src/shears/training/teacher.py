"""A teacher, found by its name, and its predictions: computed once, kept in one file.

L labels of a training set, K of a batch, N words that are kept of each prediction.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shears.checkpoints.without_code import known_config
from shears.config.train_options import LoopConfig
from shears.data.examples import IGNORED, Tokenized, rows_fingerprint
from shears.errors import InputError, reading
from shears.models.devices import autocast, computing_dtype, device_of, pick_device, resolved_precision
from shears.models.fetching import cache_folder
from shears.models.load import load_with_adapter
from shears.models.ref import ModelRef, checked_base, load_tokenizer, resolve
from shears.progress import track
from shears.records.artifacts import find_record, read_record, sync_path, weights_fingerprint
from shears.records.folders import refuse_full_disk
from shears.records.paths import ADAPTER_CONFIG, expanded
from shears.training.batches import length_buckets, pad_right
from shears.training.checkpoints import first_process_first
from shears.training.losses import TopK, labelled_positions, logits_at

logger = logging.getLogger(__name__)
FOLDER = "teacher_targets"
TOP_K = 64  # likeliest words that are kept of each prediction; the others count as one
BATCH = 4  # examples that the teacher reads together
ROWS = 64  # positions whose probabilities are computed together


@dataclass(frozen=True)
class TeacherSource:
    """A teacher that is not loaded yet: its model, and the adapter on it, if any."""

    model: ModelRef
    adapter: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the model's weights, with that of the adapter's after it."""
        return "-".join([self.model.fingerprint, *([weights_fingerprint(self.adapter)] if self.adapter else [])])

    @property
    def name(self) -> str:
        return self.model.name if self.adapter is None else str(self.adapter)

    @property
    def recorded_name(self) -> str:
        return self.model.recorded_name if self.adapter is None else str(self.adapter.resolve())

    def load(self, dtype: str = "auto", device: str = "auto") -> nn.Module:
        return load_with_adapter(self.model, self.adapter, dtype, device)[0]


def find_teacher(name: str | Path) -> TeacherSource:
    folder = expanded(name)
    if not (folder / ADAPTER_CONFIG).is_file():
        source = TeacherSource(resolve(name))
    else:
        path = find_record(folder)
        if path is None:
            rule = "a teacher that is an adapter must be one that shears trained"
            raise InputError(f"{rule}, got {folder}; merge it into its model and name that")
        source = TeacherSource(checked_base(folder, read_record(folder, path.name, "base", "base_fingerprint")), folder)
    source.model.refuse_package("teach")
    return source


def refuse_other_vocabulary(teacher: TeacherSource, student: ModelRef) -> None:
    models = (teacher.model, student)
    sizes = [int(known_config(model.folder).get_text_config().vocab_size) for model in models]
    words = [load_tokenizer(model).get_vocab() for model in models]
    if sizes[0] != sizes[1] or words[0] != words[1]:
        raise InputError(
            f"a teacher must have the same vocabulary as the model that it teaches: {teacher.name} has {sizes[0]:,} "
            f"tokens, {student.name} has {sizes[1]:,} or others; use the model that it was pruned from"
        )


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's likeliest words at a training set's labels; `firsts` are the examples' first."""

    firsts: list[int]
    indices: Int[Tensor, "L N"]
    log_probs: Float[Tensor, "L N"]

    def of(self, numbers: Int[Tensor, " B"]) -> TopK:
        spans = [slice(self.firsts[number], self.firsts[number + 1]) for number in numbers.tolist()]
        indices, log_probs = (torch.cat([each[span] for span in spans]) for each in (self.indices, self.log_probs))
        return TopK(indices.to(numbers.device, torch.int64), log_probs.to(numbers.device))


def first_labels(rows: Sequence[Tokenized]) -> list[int]:
    """Return the numbers of labels before each example, then of all; no label is a first token."""
    counts = (sum(label != IGNORED for label in row.labels[1:]) for row in rows)
    return [0, *accumulate(counts)]


def teacher_targets(
    source: TeacherSource, rows: Sequence[Tokenized], pad_id: int, settings: LoopConfig
) -> TeacherTargets:
    """Return the teacher's targets for a training on these rows, from the cache if it has them."""
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    key = {"teacher": source.fingerprint, "precision": precision, "top_k": TOP_K, "rows": rows_fingerprint(rows)}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / FOLDER / f"{name}.safetensors"
    with first_process_first():
        if not path.is_file():
            refuse_full_disk(path, 6 * TOP_K * first_labels(rows)[-1])
            network = source.load(computing_dtype(settings.precision, device), settings.device)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            save_file(_computed(network, rows, pad_id, precision), temporary)
            sync_path(temporary)
            temporary.rename(path)
    with reading(path):
        tensors = load_file(path)
        return TeacherTargets(first_labels(rows), tensors["indices"], tensors["log_probs"])


@torch.no_grad()
def _computed(network: nn.Module, rows: Sequence[Tokenized], pad_id: int, precision: str) -> dict[str, Tensor]:
    firsts = first_labels(rows)
    tensors: dict[str, Any] = {}
    labelled = [number for number in range(len(rows)) if firsts[number + 1] > firsts[number]]
    buckets = length_buckets([len(rows[number].input_ids) for number in labelled], BATCH)
    for places_in_bucket in track(buckets, "running the teacher", len(buckets), "batches"):
        bucket = [labelled[place] for place in places_in_bucket]
        padded = pad_right([rows[number] for number in bucket], pad_id)
        batch = {name: tensor.to(device_of(network)) for name, tensor in padded.items()}
        with autocast(precision, device_of(network)):
            logits = logits_at(network, batch, labelled_positions(batch["labels"]))
        parts = [piece.float().log_softmax(-1).topk(min(TOP_K, piece.shape[-1])) for piece in logits.split(ROWS)]
        values = torch.cat([part.values for part in parts]).half().cpu()
        indices = torch.cat([part.indices for part in parts]).int().cpu()
        if not tensors:
            shape = (firsts[-1], values.shape[1])
            tensors = {"indices": indices.new_empty(shape), "log_probs": values.new_empty(shape)}
        places = torch.cat([torch.arange(firsts[number], firsts[number + 1]) for number in bucket])
        tensors["indices"][places] = indices
        tensors["log_probs"][places] = values
    return tensors
