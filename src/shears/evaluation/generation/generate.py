"""Answers in batches, greedy or by beam search.

B prompts, T tokens, V words of the vocabulary (or logits).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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

from shears.data.batch_trials import LONG, SHORT, TRIAL_ERRORS, drawn, is_apart, num_words, weights_dtype
from shears.data.batches import length_buckets, pad_left, padding
from shears.data.examples import Tokenized, prompt_ids
from shears.errors import InputError
from shears.evaluation.generation.prompt_caches import Fill
from shears.evaluation.journal import Journal
from shears.evaluation.scoring.context import refuse_beyond, warn_beyond
from shears.evaluation.scoring.score import device_of
from shears.progress import track


def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    one_line: bool = False,
) -> list[str]:
    """Return the greedy continuation of every prompt, up to the end of sequence or, if `one_line`, of its first line.

    Batches are of about equal lengths, padded on the left and masked, or as the model keeps
    them apart; the answers are in the order of the prompts. InputError for a prompt that is empty or too long.
    """
    decoder = Decoder(model, tokenizer, max_new_tokens, one_line)
    return decoder.answers(prompt_ids(prompts, tokenizer), batch_size)


@dataclass(frozen=True)
class Decoder:
    """Continues prompts, up to the end of sequence or, if `one_line`, of the first line.

    One beam takes the likeliest token each time; several keep the likeliest beginnings. `journal` keeps whole batches.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    one_line: bool = False
    num_beams: int = 1
    journal: Journal | None = None

    def answers(
        self,
        prompts: Sequence[list[int]],
        batch_size: int,
        before: Callable[[Sequence[int]], Fill | None] = lambda _: None,
    ) -> list[str]:
        """Return the continuation of every prompt, which is given as its tokens.

        `before` hears the numbers of the prompts of each batch first; what it returns fills the batch's cache.
        """
        if not all(prompts):
            raise InputError(f"a prompt must not be empty, number {[*prompts].index([]) + 1} is")
        rows = [Tokenized(ids, ids) for ids in prompts]
        lengths = [len(row.input_ids) for row in rows]
        refuse_beyond(
            self.model, [length + self.max_new_tokens - 1 for length in lengths], "shorten it or lower max_new_tokens"
        )
        answers, breaks = [""] * len(rows), line_breaks(self.tokenizer) if self.one_line else None
        buckets = self._buckets(lengths, batch_size)
        for indices in track(buckets, "generating", len(buckets), "batches"):
            fill = before(indices)
            texts = self.journal.get(indices) if self.journal else None
            if texts is None:
                texts = self._continue([rows[index] for index in indices], breaks, fill)
                if self.journal:
                    self.journal.put(indices, texts)
            for index, answer in zip(indices, texts, strict=True):
                answers[index] = answer
        return answers

    def warn(self, prompts: Sequence[list[int]]) -> None:
        """Log how many prompts come, with their answers, to more tokens than the model was made for."""
        warn_beyond(self.model, [len(ids) + self.max_new_tokens - 1 for ids in prompts])

    def _buckets(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Return the numbers of the prompts of each batch: as many together as the model keeps apart."""
        if min(batch_size, len(lengths)) == 1 or self._padded:
            return length_buckets(lengths, batch_size)
        return length_buckets(lengths, batch_size if self._batched else 1, padded=False)

    @cached_property
    def _padded(self) -> bool:
        return self._keeps_apart(LONG)

    @cached_property
    def _batched(self) -> bool:
        return self._keeps_apart(SHORT)

    def _keeps_apart(self, length: int) -> bool:
        """Tell whether a prompt is continued beside one of this length as it is alone; tried, cache and all.

        RWKV of transformers, for one, mixes the rows of a batch up when it goes on from its state.
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
        """Return the logits of the tokens behind the first row, all of them the same whatever is likeliest."""
        ends = _ends(self.model, self.tokenizer)
        token = next(token for token in range(num_words(self.model)) if token not in ends)
        always = LogitsProcessorList([Always(token)])
        batch = self.batch([Tokenized(ids, ids) for ids in rows])
        found = self._generated(batch, None, None, output_logits=True, logits_processor=always).logits
        return torch.stack(found)[:, 0].float()

    def _continue(self, rows: Sequence[Tokenized], breaks: Tensor | None, fill: Fill | None) -> list[str]:
        batch = self.batch(rows)
        tokens = self.continued(batch, breaks, fill(batch) if fill else None)
        ends, line_ends = _ends(self.model, self.tokenizer), set() if breaks is None else set(breaks.tolist())
        whole = [_until_end(row, ends, line_ends) for row in tokens.tolist()]
        return self.tokenizer.batch_decode(whole, skip_special_tokens=True)

    def batch(self, rows: Sequence[Tokenized]) -> dict[str, Tensor]:
        """Return prompts as the model's inputs."""
        device = device_of(self.model)
        return {name: tensor.to(device) for name, tensor in pad_left(rows, padding(self.tokenizer)).items()}

    def continued(
        self, batch: Mapping[str, Tensor], breaks: Tensor | None = None, cache: Any = None
    ) -> Int[Tensor, "B T"]:
        """Return the tokens behind the prompts; `cache` holds all of these but the last tokens, where there is one.

        InputError where the model's logits are no numbers.
        """
        found = self._generated(batch, breaks, cache, logits_processor=LogitsProcessorList([Numbers()]))
        tokens: Tensor = found.sequences[:, batch["input_ids"].shape[1] :]
        return tokens

    def logits(self, batch: Mapping[str, Tensor], cache: Any = None) -> Float[Tensor, "T B V"]:
        """Return the logits of which the tokens behind the prompts are the likeliest; `cache` as in `continued`."""
        return torch.stack(self._generated(batch, None, cache, output_logits=True).logits)

    @torch.no_grad()
    def _generated(self, batch: Mapping[str, Tensor], breaks: Tensor | None, cache: Any, **options: Any) -> Any:
        model: Any = self.model
        length = batch["input_ids"].shape[1]
        try:
            return model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                generation_config=_settings(model, self.tokenizer, self.max_new_tokens, self.num_beams),
                stopping_criteria=StoppingCriteriaList([] if breaks is None else [EndOfLine(breaks, length)]),
                return_dict_in_generate=True,
                **({} if cache is None else {"cache": cache}),
                **options,
            )
        except ValueError as error:
            if self.num_beams > 1 and "cannot use beam search" in str(error):  # its state cannot be reordered
                raise InputError(f"num_beams must be 1 (--num-beams 1), got {self.num_beams}: {error}") from None
            raise


def _settings(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, num_beams: int) -> GenerationConfig:
    """Write out what a model's own generation settings would else fill in: the likeliest text, nothing added."""
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
        eos_token_id=sorted(_ends(model, tokenizer)) or None,
        pad_token_id=padding(tokenizer),
    )


def _until_end(tokens: list[int], ends: Collection[int], line_ends: Collection[int]) -> list[int]:
    """Return a text's tokens as far as it goes alone; in a batch, padding or more text may stand behind its end."""
    has_text = False
    for place, token in enumerate(tokens, start=1):
        if token in ends or (has_text and token in line_ends):
            return tokens[:place]
        has_text |= token not in line_ends
    return tokens


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return every token that ends a sequence, for the tokenizer or for the model (chat models have several)."""
    of_model = getattr(model.generation_config, "eos_token_id", None)
    several = of_model if isinstance(of_model, list) else [of_model]
    return {end for end in (tokenizer.eos_token_id, *several) if end is not None}


class EndOfLine(StoppingCriteria):
    """Stops a row at the first line break behind a line that is not empty."""

    def __init__(self, line_breaks: Int[Tensor, " V"], prompt_length: int) -> None:
        self._breaks, self._start = line_breaks, prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Bool[Tensor, " B"]:
        """Return which rows have ended."""
        breaks = torch.isin(input_ids[:, self._start :], self._breaks.to(input_ids.device))
        return breaks[:, -1] & (~breaks).any(dim=1)


class Always(LogitsProcessor):
    """Makes one token the likeliest."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits of which that token's is the largest."""
        return torch.zeros_like(scores).index_fill_(1, torch.tensor([self._token], device=scores.device), 1.0)


class Numbers(LogitsProcessor):
    """Refuses logits of which none is the largest: the likeliest of such would be any token, said with no word."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits as they are; InputError where a row has nan, or no finite largest one."""
        largest = scores.amax(dim=-1)
        if not bool(largest.isfinite().all()):
            bad = largest[~largest.isfinite()][0].item()
            raise InputError(
                f"the model must give finite logits, got {bad} for a token; it may be damaged, or need --precision fp32"
            )
        return scores


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " V"]:
    """Return every token whose text holds a line break."""
    vocabulary = tokenizer.get_vocab()
    return torch.tensor([i for token, i in vocabulary.items() if "\n" in tokenizer.convert_tokens_to_string([token])])
