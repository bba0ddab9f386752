"""Load a finished super-adapter: its frozen base, its search space and the handle on its ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import SearchSpace
from shears.errors import reading
from shears.models.load import load_both, put_adapter
from shears.models.ref import checked_base
from shears.records.artifacts import SEARCH_SPACE, inherited, read_record


class SuperAdapter(NamedTuple):
    """A loaded super-adapter; `elastic.activate` chooses the ranks of the next forward.

    `record` is its search_space.json, with the earlier trainings of its base
    (records/artifacts.py).
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    elastic: ElasticAdapter
    record: dict[str, Any]


def space_of_record(record: Mapping[str, Any]) -> SearchSpace:
    """Return the search space in the record `search_space.json`; InputError if it has none."""
    with reading(SEARCH_SPACE):
        return SearchSpace.of_data(record["groups"])


def load_super_adapter(
    folder: str | Path, model: str | None = None, dtype: str = "auto", device: str = "auto"
) -> SuperAdapter:
    """Load a super-adapter on its frozen base; it computes as in its training.

    InputError if the base is not the one it was trained on.
    """
    folder = Path(folder)
    record = read_record(folder, SEARCH_SPACE, "groups", "base", "base_fingerprint")
    base = checked_base(folder, record, model)
    network, tokenizer = load_both(base, dtype, device)
    peft_model = put_adapter(network, folder, record=record)
    known = {**inherited(base.record), **record}
    return SuperAdapter(peft_model, tokenizer, ElasticAdapter(peft_model, space_of_record(record)), known)
