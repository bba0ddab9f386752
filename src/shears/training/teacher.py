"""A teacher, found by its name (a model, or an adapter on one) and run beside a student."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from shears.checkpoints.configuration import known_config
from shears.checkpoints.zeros import zeros_share
from shears.errors import InputError
from shears.models.devices import DTYPES, autocast, device_of, resolved_precision
from shears.models.fetching import cache_folder
from shears.models.load import load_with_adapter
from shears.models.properties import keeps_apart, own_model, takes_pieces
from shears.models.ref import ModelRef, checked_base, resolve
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import find_record, read_record, weights_fingerprint
from shears.records.paths import expanded
from shears.records.peft_files import ADAPTER_CONFIG
from shears.training.distillation import Logits
from shears.training.losses import before_head, logits_at
from shears.training.memory import hold_as_computed

logger = logging.getLogger(__name__)
FOLDER = "teacher_targets"
SPARSE = 0.05  # share of zeros from which a teacher is not dense


@dataclass(frozen=True)
class TeacherSource:
    """A teacher that is not loaded yet: its model, and the adapter on it, if any."""

    model: ModelRef
    adapter: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the model's weights, with that of the adapter's behind it."""
        return "-".join([self.model.fingerprint, *([weights_fingerprint(self.adapter)] if self.adapter else [])])

    @property
    def name(self) -> str:
        """The name shown to people."""
        return self.model.name if self.adapter is None else str(self.adapter)

    @property
    def recorded_name(self) -> str:
        """The name that a record holds, from which `find_teacher` finds it again."""
        return self.model.recorded_name if self.adapter is None else str(self.adapter.resolve())

    @cached_property
    def num_words(self) -> int:
        """The words of its vocabulary; InputError for an unknown architecture."""
        return int(known_config(self.model.folder).get_text_config().vocab_size)

    def load(self, dtype: str = "auto", device: str = "auto") -> nn.Module:
        """Return the model, with its adapter, in evaluation mode; a sparse one is warned of."""
        network = load_with_adapter(self.model, self.adapter, dtype, device)[0]
        matrices = (each for name, each in network.named_parameters() if each.ndim > 1 and "lora_" not in name)
        zeros = zeros_share(matrices)
        if zeros >= SPARSE:
            logger.warning(
                "the teacher should be dense, %s has %.1f %% zeros in its matrices; take the model that it was pruned "
                "from", self.name, 100 * zeros,
            )  # fmt: skip
        return network


def find_teacher(name: str | Path) -> TeacherSource:
    """Return a teacher: a model by any name, or the folder of an adapter that shears trained.

    InputError where there is none, for a package, and for an adapter whose base is not the one it
    was trained on.
    """
    folder = expanded(name)
    if not (folder / ADAPTER_CONFIG).is_file():
        source = TeacherSource(resolve(name))
    else:
        path = find_record(folder)
        if path is None:
            raise InputError(f"a teacher that is an adapter must be one that shears trained, got {folder}; merge it")
        source = TeacherSource(checked_base(folder, read_record(folder, path.name, "base", "base_fingerprint")), folder)
    source.model.refuse_package("teach")
    return source


def refuse_other_vocabulary(teacher: TeacherSource, student: ModelRef) -> None:
    """Raise InputError where the teacher's words are not the student's."""
    sizes = [source.num_words for source in (teacher, TeacherSource(student))]
    words = [load_tokenizer(model).get_vocab() for model in (teacher.model, student)]
    if sizes[0] != sizes[1] or words[0] != words[1]:
        raise InputError(
            f"a teacher must have the vocabulary of the model that it teaches, {teacher.name} has {sizes[0]:,} words "
            f"and {student.name} {sizes[1]:,}{' others' if sizes[0] == sizes[1] else ''}; take the model that it was "
            "pruned from"
        )


class LiveTeacher:
    """Runs a frozen model on every batch; its head runs when the student's does, in pieces.

    `precision` is the arithmetic (see `devices.autocast`). The model is put into evaluation mode
    and frozen, and its linears are held as they compute.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.precision = resolved_precision(precision, device_of(model))
        self.keeps_apart = keeps_apart(model)  # packed examples
        hold_as_computed(self.model, self.precision)
        self.head: tuple[Tensor, Tensor | None] | None = None
        if takes_pieces(model):
            head: Any = own_model(model).get_output_embeddings()  # type: ignore[operator]
            # converted once, where autocast would convert it for every piece
            dtype = head.weight.dtype if self.precision == "fp32" else DTYPES[self.precision]
            self.head = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)

    @torch.no_grad()
    def targets(self, batch: Mapping[str, Tensor], wanted: Bool[Tensor, "P L"]) -> Logits:
        """Return the model's targets of the wanted positions."""
        names = (
            ("input_ids", "position_ids") if "examples" in batch else ("input_ids", "attention_mask", "position_ids")
        )
        device = device_of(self.model)
        inputs = {name: batch[name].to(device) for name in names}
        with autocast(self.precision, device):
            if self.head is not None:  # it may run outside of autocast, which would convert its input
                hidden = before_head(self.model, inputs, wanted.to(device))
                return Logits(hidden.to(self.head[0].dtype), *self.head)
            return Logits(logits_at(self.model, inputs, wanted.to(device)))


def targets_folder(data: str) -> Path:
    """Return the folder of the targets of a source: beside a local file, else in the cache."""
    path = expanded(data)
    if path.is_file() and os.access(path.parent, os.W_OK):
        return path.with_name(f"{path.name}.teacher")
    return cache_folder() / FOLDER
