"""Generation of texts in batches, greedily or by beam search.

B prompts, T tokens, V words of the vocabulary (or logits).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from shears.data.examples import Tokenized
from shears.errors import InputError
from shears.evaluation.records import TextJournal, WrittenText
from shears.evaluation.scoring.score import refuse_beyond
from shears.models.devices import device_of
from shears.models.properties import LONG, SHORT, TRIAL_ERRORS, drawn, is_apart, num_words, weights_dtype
from shears.models.tokenizers import end_tokens
from shears.progress import track
from shears.training.batches import length_buckets, pad, padding


@dataclass(frozen=True)
class Decoder:
    """Continues prompts up to the end of sequence or, with `until`, to that mark behind some text.

    The mark is a line break or a blank line.

    One beam decodes greedily. `journal` keeps the texts of complete batches.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    until: str = ""
    num_beams: int = 1
    journal: TextJournal | None = None

    def answers(self, prompts: Sequence[list[int]], batch_size: int) -> list[WrittenText]:
        """Return the continuation of every prompt; InputError for an empty or too long one."""
        refuse_empty(prompts)
        rows = [Tokenized(ids, ids) for ids in prompts]
        lengths = [len(row.input_ids) for row in rows]
        refuse_beyond(
            self.model, [length + self.max_new_tokens - 1 for length in lengths], "shorten it or lower max_new_tokens"
        )
        answers = [WrittenText("", False)] * len(rows)
        breaks = tokens_with(self.until, self.tokenizer) if self.until else None
        buckets = self._buckets(lengths, batch_size)
        for indices in track(buckets, "generating", len(buckets), "batches"):
            texts = self.journal.get(indices) if self.journal else None
            if texts is None:
                texts = self._continue([rows[index] for index in indices], breaks)
                if self.journal:
                    self.journal.put(indices, texts)
            for index, answer in zip(indices, texts, strict=True):
                answers[index] = answer
        return answers

    def _buckets(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Return the numbers of each batch's prompts.

        They are padded if the model ignores padding, else of equal lengths if it keeps rows apart,
        else alone.
        """
        if min(batch_size, len(lengths)) == 1 or self._ignores_padding:
            return length_buckets(lengths, batch_size)
        return length_buckets(lengths, batch_size if self._keeps_rows_apart else 1, padded=False)

    @cached_property
    def _ignores_padding(self) -> bool:
        return self._keeps_apart(LONG)

    @cached_property
    def _keeps_rows_apart(self) -> bool:
        return self._keeps_apart(SHORT)

    def _keeps_apart(self, length: int) -> bool:
        """Return whether a prompt continues beside one of this length as it does alone, with a
        cache.

        Transformers' RWKV, for example, mixes the rows of a batch when it continues from its state.
        """
        few = replace(self, max_new_tokens=2, num_beams=1)
        row, other, another = drawn(self.model, SHORT, length, length)
        try:
            with torch.autocast(device_of(self.model).type, enabled=False):
                beside, neighbour, alone = (few._forced(rows) for rows in ([row, other], [row, another], [row]))
        except TRIAL_ERRORS:
            return False
        return is_apart(beside, neighbour, alone, weights_dtype(self.model))

    def _forced(self, rows: Sequence[list[int]]) -> Float[Tensor, "T V"]:
        """Return the logits behind the first row, every token forced to one that ends nothing."""
        ends = end_tokens(self.tokenizer, self.model.generation_config)
        token = next(token for token in range(num_words(self.model)) if token not in ends)
        batch = self.batch([Tokenized(ids, ids) for ids in rows])
        options = {"output_logits": True, "prefix_allowed_tokens_fn": lambda *_: [token]}
        logits = self._generated(batch, None, **options).logits
        return torch.stack(logits)[:, 0].float()

    def _continue(self, rows: Sequence[Tokenized], breaks: Tensor | None) -> list[WrittenText]:
        batch = self.batch(rows)
        tokens = self.continued(batch, breaks)
        ends = end_tokens(self.tokenizer, self.model.generation_config)
        line_ends = set() if breaks is None else set(breaks.tolist())
        found = [_until_end(row, ends, line_ends) for row in tokens.tolist()]
        texts = self.tokenizer.batch_decode([ids for ids, _ in found], skip_special_tokens=True)
        return [WrittenText(text, not ended) for text, (_, ended) in zip(texts, found, strict=True)]

    def batch(self, rows: Sequence[Tokenized]) -> dict[str, Tensor]:
        """Return prompts as the model's inputs, padded on the left."""
        device = device_of(self.model)
        return {name: tensor.to(device) for name, tensor in pad(rows, padding(self.tokenizer)).items()}

    def continued(self, batch: Mapping[str, Tensor], breaks: Tensor | None = None) -> Int[Tensor, "B T"]:
        """Return the tokens behind the prompts; InputError if the model's logits are not finite."""
        output = self._generated(batch, breaks, logits_processor=LogitsProcessorList([RequireFiniteLogits()]))
        tokens: Tensor = output.sequences[:, batch["input_ids"].shape[1] :]
        return tokens

    @torch.no_grad()
    def _generated(self, batch: Mapping[str, Tensor], breaks: Tensor | None, **options: Any) -> Any:
        model: Any = self.model
        length = batch["input_ids"].shape[1]
        try:
            return model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                generation_config=_settings(model, self.tokenizer, self.max_new_tokens, self.num_beams),
                stopping_criteria=StoppingCriteriaList([] if breaks is None else [EndOfLine(breaks, length)]),
                return_dict_in_generate=True,
                **options,
            )
        except ValueError as error:
            if self.num_beams > 1 and "cannot use beam search" in str(error):  # its state cannot be reordered
                raise InputError(f"num_beams must be 1 (--num-beams 1), got {self.num_beams}: {error}") from None
            raise


def refuse_empty(prompts: Sequence[list[int]]) -> None:
    """Raise InputError for the first prompt without tokens."""
    if not all(prompts):
        raise InputError(f"a prompt must not be empty, number {[*prompts].index([]) + 1} is")


def _settings(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, num_beams: int) -> GenerationConfig:
    """Return settings without sampling or penalties; unset ones would be the model's own."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=1,
        length_penalty=1.0,
        early_stopping=False,
        use_cache=True,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(end_tokens(tokenizer, model.generation_config)) or None,
        pad_token_id=padding(tokenizer),
    )


def _until_end(tokens: list[int], ends: Collection[int], line_ends: Collection[int]) -> tuple[list[int], bool]:
    """Return a text's tokens up to its end, and whether it ends; in a batch, padding or text may follow the end."""
    has_text = False
    for place, token in enumerate(tokens, start=1):
        if token in ends or (has_text and token in line_ends):
            return tokens[:place], True
        has_text |= token not in line_ends
    return tokens, False


class EndOfLine(StoppingCriteria):
    """Stops a row at the first line break behind a line that is not empty."""

    def __init__(self, line_breaks: Int[Tensor, " V"], prompt_length: int) -> None:
        self._breaks = line_breaks
        self._start = prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Bool[Tensor, " B"]:
        """Return which rows have ended."""
        breaks = torch.isin(input_ids[:, self._start :], self._breaks.to(input_ids.device))
        return breaks[:, -1] & (~breaks).any(dim=1)


class RequireFiniteLogits(LogitsProcessor):
    """Refuses logits without a finite maximum, where generation would take any token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits unchanged; InputError if a row has nan, or no finite maximum."""
        largest = scores.amax(dim=-1)
        if not bool(largest.isfinite().all()):
            raise damaged_logits(largest[~largest.isfinite()][0].item())
        return scores


def damaged_logits(logit: float) -> InputError:
    """Return the error for logits whose maximum is not finite."""
    return InputError(
        f"the model must give finite logits, got {logit} for a token; it may be damaged, or need --precision fp32"
    )


def tokens_with(mark: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " V"]:
    """Return every token whose text holds a mark, such as a line break."""
    vocabulary = tokenizer.get_vocab()
    found = [number for token, number in vocabulary.items() if mark in tokenizer.convert_tokens_to_string([token])]
    return torch.tensor(found, dtype=torch.long)
