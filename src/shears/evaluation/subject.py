"""What an evaluation measures: a model, an adapter at chosen ranks, and what generates the answers. Loaded once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.load import load_super_adapter
from shears.adapt.ranks import choose_ranks
from shears.adapt.space import RankConfig, SearchSpace
from shears.checkpoints.conversion import known_config
from shears.checkpoints.without_code import build_causal_model
from shears.config import EvaluateConfig
from shears.config.evaluate import ALL_RANKS
from shears.evaluation.continuous import NativeRanks, if_covered, native_backend, package_backend
from shears.evaluation.curve import allowed_ranks, tied
from shears.models.load import load_tokenizer, load_with_adapter
from shears.models.ref import ModelRef
from shears.runtime.loading import generation_settings

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend


@dataclass
class Subject:
    """A loaded model and its tokenizer; `backend` generates answers in place of transformers.

    If there is a backend, the model may be without weights: it only tells its configuration. `ranks` are those to
    measure, by the rank of all groups, or by None for a single configuration or for a model without an elastic adapter.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    backend: "NativeBackend | None" = None
    ranks: dict[int | None, RankConfig | None] = field(default_factory=lambda: {None: None})
    elastic: ElasticAdapter | None = None
    native_ranks: NativeRanks | None = None

    values: dict[str, object] = field(default_factory=dict)
    """The number format in which a package answers, as its records hold it; empty for other models."""

    def activate(self, ranks: RankConfig | None) -> None:
        """Measure these ranks from now on; None changes nothing."""
        if ranks is None or self.elastic is None:
            return
        self.elastic.activate(ranks)
        if self.native_ranks is not None:
            self.backend = self.native_ranks.at(ranks)


def open_subject(ref: ModelRef, adapter: str | None, settings: EvaluateConfig) -> Subject:
    """Load what is measured; InputError where the adapter does not fit the model, or is not elastic but has ranks.

    A package is read by the native decoder itself where that covers it. Of any other model that the native decoder
    covers, the weights are moved to it.
    """
    if settings.ranks is not None and adapter is not None:
        return _at_ranks(ref, adapter, settings)
    if (backend := package_backend(ref, settings)) is not None:
        return Subject(
            _without_weights(ref), load_tokenizer(ref), backend, values={"values": backend.describe()["values"]}
        )
    model, tokenizer = load_with_adapter(ref, adapter, settings.weights, settings.device)
    return Subject(model, tokenizer, native_backend(model, settings, consume=True))


def _without_weights(ref: ModelRef) -> nn.Module:
    with torch.device("meta"):
        model = build_causal_model(known_config(ref.folder))
    model.generation_config = generation_settings(ref.folder)
    return model


def _at_ranks(ref: ModelRef, adapter: str, settings: EvaluateConfig) -> Subject:
    loaded = load_super_adapter(adapter, str(ref.folder), settings.weights, settings.device)
    ranks = _chosen(settings.ranks or "", loaded.elastic.space, loaded.record["fingerprint"])
    native = None
    if settings.generates:
        make = lambda: NativeRanks(loaded.elastic, settings, consume=True)  # noqa: E731  (short, and used once)
        native = if_covered(settings.backend, settings.num_beams, make)
    return Subject(loaded.model, loaded.tokenizer, None, ranks, loaded.elastic, native)


def _chosen(name: str, space: SearchSpace, fingerprint: str) -> dict[int | None, RankConfig | None]:
    if name == ALL_RANKS:
        return {rank: tied(space, rank) for rank in allowed_ranks(space)}
    if name.isdecimal() and not Path(name).is_file():
        return {None: tied(space, int(name))}
    return {None: choose_ranks(name, space, fingerprint)}
