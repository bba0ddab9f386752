"""Answers to prompts: greedily by the native decoder, greedily or with beams by transformers.

B prompts, T tokens, V words of the vocabulary (or logits).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from shears.config import SamplingConfig
from shears.config.evaluate_options import ScoringConfig
from shears.data.examples import Tokenized
from shears.errors import InputError, option
from shears.evaluation.evaluated import TextJournal, WrittenText
from shears.models.devices import device_of, resolved_precision
from shears.models.load import cache_bytes, ignores_padding, refuse_unknown
from shears.models.ref import end_tokens
from shears.progress import meter, track
from shears.runtime.backend import Backend
from shears.runtime.batch import Batch
from shears.runtime.continuation import Continuation, TextSettings
from shears.runtime.engine import decoding_by
from shears.runtime.loading import Wanted
from shears.training.batches import length_buckets, pad, padding


def wanted_for(config: ScoringConfig, num_beams: int = 1) -> Wanted:
    obstacle = f"the native decoder supports num_beams 1 only, got {num_beams} beams" if num_beams > 1 else ""
    precision = "fp32" if config.precision == "fp16" else resolved_precision(config.precision, "cpu")  # fp16: no CPU
    return Wanted(config.backend, precision, config.batch_size, obstacle=obstacle)


@dataclass(frozen=True)
class Decoder:
    """Continues prompts up to the end of sequence or, with `until`, to that mark behind some text.

    One beam decodes greedily. `journal` keeps the texts of complete batches, or single ones of the
    native decoder, `backend`, in which a text does not depend on the texts beside it.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    until: str = ""
    num_beams: int = 1
    journal: TextJournal | None = None
    backend: Backend | None = None

    def answers(self, prompts: Sequence[list[int]], batch_size: int) -> list[WrittenText]:
        """Return the continuation of every prompt; InputError for an empty one.

        A model that reads padding answers alone: its cache may also mix the rows of a batch.
        """
        if not all(prompts):
            raise InputError(f"a prompt must not be empty, prompt {[*prompts].index([]) + 1} is")
        line_ends = tokens_with(self.until, self.tokenizer)
        if self.backend is not None:
            return self._natively(self.backend, prompts, line_ends)
        if (device := device_of(self.model)).type == "cuda":  # the cache gets half of free memory
            tokens = self.num_beams * (max(map(len, prompts)) + self.max_new_tokens)
            room = torch.cuda.mem_get_info(device)[0] // 2
            batch_size = max(min(batch_size, room // max(tokens * cache_bytes(self.model), 1)), 1)
        answers = [WrittenText("", False)] * len(prompts)
        can_pad = min(batch_size, len(prompts)) == 1 or ignores_padding(self.model)
        buckets = length_buckets([len(prompt) for prompt in prompts], batch_size if can_pad else 1)
        for indices in track(buckets, "generating", len(buckets), "batches"):
            texts = self.journal.get(indices) if self.journal else None
            if texts is None:
                texts = self._texts([prompts[index] for index in indices], line_ends)
                if self.journal:
                    self.journal.put(indices, texts)
            for index, answer in zip(indices, texts, strict=True):
                answers[index] = answer
        return answers

    def _natively(self, backend: Backend, prompts: Sequence[list[int]], line_ends: frozenset[int]) -> list[WrittenText]:
        refuse_unknown(max(map(max, prompts)), backend.vocab_size)
        kept = {number: self.journal.get([number]) if self.journal else None for number in range(len(prompts))}
        answers = {number: texts[0] for number, texts in kept.items() if texts is not None}
        ends = end_tokens(self.tokenizer, getattr(self.model, "generation_config", None))
        options = SamplingConfig(max_new_tokens=self.max_new_tokens)
        settings = TextSettings(decoding_by(self.tokenizer), ends, backend.max_length, line_ends)
        longest_first = [number for (number,) in length_buckets(list(map(len, prompts)), 1)]
        missing = [
            Continuation(prompts[number], options, settings, number=number)
            for number in longest_first
            if number not in answers
        ]
        with meter("generating", len(prompts), "questions") as progress:
            progress.skip(len(answers))
            for text in Batch(backend).run(missing):
                [words] = self.tokenizer.batch_decode([text.tokens], skip_special_tokens=True)
                answers[text.number] = WrittenText(words, text.finish == "length")
                if self.journal:
                    self.journal.put([text.number], [answers[text.number]])
                progress.advance(work=len(text.tokens), note="tokens/s")
        return [answers[number] for number in range(len(prompts))]

    def _texts(self, prompts: Sequence[list[int]], line_ends: frozenset[int]) -> list[WrittenText]:
        batch = pad([Tokenized(ids, ids) for ids in prompts], padding(self.tokenizer))  # left side
        ends = end_tokens(self.tokenizer, getattr(self.model, "generation_config", None))
        tokens = self.continued(batch).tolist()
        found = [_until_end(row, ends, line_ends) for row in tokens]
        texts = self.tokenizer.batch_decode([ids for ids, _ in found], skip_special_tokens=True)
        return [WrittenText(text, not ended) for text, (_, ended) in zip(texts, found, strict=True)]

    @torch.no_grad()
    def continued(self, batch: Mapping[str, Tensor]) -> Int[Tensor, "B T"]:
        """Return the tokens behind the prompts; InputError if the model's logits are not finite.

        Sampling and penalties are switched off: unset ones would be the model's own.
        """
        model: Any = self.model
        length = batch["input_ids"].shape[1]
        settings = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=self.num_beams,
            num_return_sequences=1,
            length_penalty=1.0,
            early_stopping=False,
            use_cache=True,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=sorted(end_tokens(self.tokenizer, model.generation_config)) or None,
            pad_token_id=padding(self.tokenizer),
        )
        with option("generation by transformers"):  # beams may be unsupported, a prompt too long
            tokens: Tensor = model.generate(
                input_ids=batch["input_ids"].to(device_of(model)),
                attention_mask=batch["attention_mask"].to(device_of(model)),
                generation_config=settings,
                logits_processor=LogitsProcessorList([RequireFiniteLogits()]),
            )
        return tokens[:, length:]


def _until_end(tokens: list[int], ends: Collection[int], line_ends: Collection[int]) -> tuple[list[int], bool]:
    """Return a text's tokens up to its end, and whether it ends; padding or text may follow."""
    has_text = False
    for place, token in enumerate(tokens, start=1):
        if token in ends or (has_text and token in line_ends):
            return tokens[:place], True
        has_text |= token not in line_ends
    return tokens, False


class RequireFiniteLogits(LogitsProcessor):
    """Refuses logits without a finite maximum, where generation would take any token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        largest = scores.amax(dim=-1)
        if not bool(largest.isfinite().all()):
            got = largest[~largest.isfinite()][0].item()
            rule = "the model must give finite logits"
            raise InputError(f"{rule}, got {got} for a token; it may be damaged, or need --precision fp32")
        return scores


def tokens_with(mark: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every token whose text holds a mark, such as a line break; none without a mark."""
    vocabulary = tokenizer.get_vocab().items() if mark else ()
    return frozenset(number for token, number in vocabulary if mark in tokenizer.convert_tokens_to_string([token]))
