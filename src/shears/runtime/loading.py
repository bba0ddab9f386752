"""From a name to an engine, for any model that transformers loads."""

from collections.abc import Iterable
from typing import Any

from shears.evaluation.run import load_with_adapter
from shears.models import set_threads
from shears.runtime.engine import Engine
from shears.runtime.transformers_backend import TransformersBackend


def load_model_engine(
    model: str, adapter: str | None = None, dtype: str = "auto", device: str = "auto", threads: int | None = None
) -> Engine:
    """Return an engine for a model that is no package, with or without an adapter, through transformers."""
    set_threads(threads)
    loaded, tokenizer = load_with_adapter(model, adapter, dtype, device)
    settings: Any = getattr(loaded, "generation_config", None)
    found = ends(tokenizer.eos_token_id, getattr(settings, "eos_token_id", None))
    return Engine(TransformersBackend(loaded), tokenizer, found)


def ends(*found: Iterable[int] | int | None) -> frozenset[int]:
    """Return every token that ends a text, for the tokenizer or for the model (chat models have several)."""
    result: set[int] = set()
    for ids in found:
        result |= set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    return frozenset(result)
