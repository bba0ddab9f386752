"""Greedy answers by the native decoder: a text that ends is replaced by the next one at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SamplingConfig
from shears.config.evaluate import ScoringConfig
from shears.evaluation.generate import refuse_empty, tokens_with
from shears.evaluation.records import TextJournal, WrittenText
from shears.models.blocks import LoraUpdate
from shears.models.devices import resolved_precision
from shears.models.load import refuse_unknown
from shears.models.sparse_adapter import is_sparse
from shears.models.tokenizers import end_tokens
from shears.progress import meter
from shears.runtime.choice import Wanted, native_backend
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.batch import Batch
from shears.runtime.generation.continuation import Continuation, TextSettings
from shears.runtime.generation.engine import decoding_by
from shears.runtime.native.loaded_model import updates_of
from shears.training.batches import length_buckets

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend


def wanted_for(config: ScoringConfig, num_beams: int = 1) -> Wanted:
    """Return what generating answers needs of the native decoder."""
    obstacle = f"the native decoder answers greedily (num_beams 1), got {num_beams} beams" if num_beams > 1 else ""
    precision = resolved_precision(config.precision, "cpu")
    return Wanted(config.backend, precision, config.batch_size, obstacle=obstacle)


class NativeRanks:
    """The native decoder of an elastic adapter at any ranks; weights are packed once.

    Only a masked adapter is a part of the weights, which are packed anew for other ranks.
    """

    def __init__(self, elastic: ElasticAdapter, wanted: Wanted, backend: "NativeBackend") -> None:
        self._elastic = elastic
        self._wanted = wanted
        self._updates = updates_of(elastic.model)
        self._is_masked = is_sparse(elastic.model)
        self._backend: NativeBackend | None = backend
        self._packed = elastic.active

    def at(self, ranks: RankConfig) -> "NativeBackend":
        """Return the decoder at these ranks; decoders returned before are of no further use."""
        self._elastic.activate(ranks)
        if self._is_masked and self._packed != ranks:
            self._backend = None  # frees its memory first
            self._backend = native_backend(self._elastic.model, replace(self._wanted, backend="native"))
            self._packed = ranks
        assert self._backend is not None, "it is made before and after each use"
        if not self._is_masked:
            self._backend.adapt(cut(self._updates, self._elastic.space, ranks))
        return self._backend


def open_native_ranks(elastic: ElasticAdapter, wanted: Wanted, *, consume: bool = False) -> NativeRanks | None:
    """Return an adapter's native decoder, or None as `native_backend`; masks are not consumed."""
    backend = native_backend(elastic.model, wanted, consume=consume and not is_sparse(elastic.model))
    return None if backend is None else NativeRanks(elastic, wanted, backend)


def cut(updates: Mapping[str, LoraUpdate], space: SearchSpace, ranks: RankConfig) -> dict[str, LoraUpdate]:
    """Return the first r rows of A and columns of B, r the group's rank, times its factor."""
    groups = {name: group for group, names in space.modules.items() for name in names}
    found = {}
    for name, update in updates.items():
        group = groups[name]
        rank = ranks[group]
        scaling = update.scaling * space.factor(group, rank)
        found[name] = replace(update, a=update.a[:rank], b=update.b[:, :rank], scaling=scaling)
    return found


@dataclass(frozen=True)
class ContinuousDecoder:
    """Continues prompts greedily up to the end of sequence or, with `until`, to that mark, as `Decoder`.

    A text depends neither on the texts beside it nor on when it begins, so `journal` keeps single
    texts. The generation settings in `settings` name end tokens.
    """

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    settings: object
    max_new_tokens: int
    until: str = ""
    journal: TextJournal | None = None

    def answers(self, prompts: Sequence[list[int]]) -> list[WrittenText]:
        """Return the continuation of every prompt of tokens; InputError for an empty one."""
        refuse_empty(prompts)
        refuse_unknown(max(map(max, prompts)), self.backend.vocab_size)
        ends = end_tokens(self.tokenizer, self.settings)
        line_ends = frozenset(tokens_with(self.until, self.tokenizer).tolist()) if self.until else frozenset[int]()
        kept = {number: self.journal.get([number]) if self.journal else None for number in range(len(prompts))}
        answers = {number: texts[0] for number, texts in kept.items() if texts is not None}
        longest_first = [number for (number,) in length_buckets([len(prompt) for prompt in prompts], 1)]
        options = SamplingConfig(max_new_tokens=self.max_new_tokens)
        settings = TextSettings(decoding_by(self.tokenizer), ends, self.backend.max_length, line_ends)
        missing = [
            Continuation(prompts[number], options, settings, number=number)
            for number in longest_first
            if number not in answers
        ]
        with meter("generating", len(prompts), "questions") as progress:
            progress.skip(len(answers))
            for text in Batch(self.backend, fills_first=True).run(missing):
                [words] = self.tokenizer.batch_decode([text.tokens], skip_special_tokens=True)
                answers[text.number] = WrittenText(words, text.finish == "length")
                if self.journal:
                    self.journal.put([text.number], [answers[text.number]])
                progress.advance(work=len(text.tokens), note="tokens/s")
        return [answers[number] for number in range(len(prompts))]
