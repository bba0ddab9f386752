"""Answers in batches, greedy or by beam search.

B prompts, T tokens, V words of the vocabulary (or logits).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from shears.data.collate import length_buckets, pad_left
from shears.data.examples import Tokenized, prompt_ids
from shears.errors import InputError
from shears.evaluation.journal import Journal
from shears.evaluation.prompt_caches import Fill
from shears.evaluation.score import device_of, padding
from shears.progress import track


class EndOfLine(StoppingCriteria):
    """Stops a row at the first line break behind a line that is not empty."""

    def __init__(self, line_breaks: Int[Tensor, " V"], prompt_length: int) -> None:
        self._breaks, self._start = line_breaks, prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Bool[Tensor, " B"]:
        """Return which rows have ended."""
        breaks = torch.isin(input_ids[:, self._start :], self._breaks.to(input_ids.device))
        return breaks[:, -1] & (~breaks).any(dim=1)


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " V"]:
    """Return every token whose text holds a line break."""
    vocabulary = tokenizer.get_vocab()
    return torch.tensor([i for token, i in vocabulary.items() if "\n" in tokenizer.convert_tokens_to_string([token])])


def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    one_line: bool = False,
) -> list[str]:
    """Return the greedy continuation of every prompt, up to the end of sequence or, if `one_line`, of its first line.

    Batches are of about equal lengths, padded on the left and masked; the answers are in the order of the prompts.
    InputError for an empty prompt.
    """
    return Decoder(model, tokenizer, max_new_tokens, one_line).answers(prompts, batch_size)


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
        self, prompts: Sequence[str], batch_size: int, before: Callable[[Sequence[int]], Fill | None] = lambda _: None
    ) -> list[str]:
        """Return the continuation of every prompt.

        `before` hears the numbers of the prompts of each batch first; what it returns fills the batch's cache.
        """
        rows = [Tokenized(ids, ids) for ids in _checked_prompts(prompts, self.tokenizer)]
        answers, breaks = [""] * len(rows), line_breaks(self.tokenizer) if self.one_line else None
        buckets = length_buckets([len(row.input_ids) for row in rows], batch_size)
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

    def _continue(self, rows: Sequence[Tokenized], breaks: Tensor | None, fill: Fill | None) -> list[str]:
        batch = self.batch(rows)
        tokens = self.continued(batch, breaks, fill(batch) if fill else None)
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def batch(self, rows: Sequence[Tokenized]) -> dict[str, Tensor]:
        """Return prompts as the model's inputs."""
        device = device_of(self.model)
        return {name: tensor.to(device) for name, tensor in pad_left(rows, padding(self.tokenizer)).items()}

    def continued(
        self, batch: Mapping[str, Tensor], breaks: Tensor | None = None, cache: Any = None
    ) -> Int[Tensor, "B T"]:
        """Return the tokens behind the prompts; `cache` holds all of these but the last tokens, where there is one."""
        tokens: Tensor = self._generated(batch, breaks, cache).sequences[:, batch["input_ids"].shape[1] :]
        return tokens

    def logits(self, batch: Mapping[str, Tensor], cache: Any = None) -> Float[Tensor, "T B V"]:
        """Return the logits of which the tokens behind the prompts are the likeliest; `cache` as in `continued`."""
        return torch.stack(self._generated(batch, None, cache, output_logits=True).logits)

    @torch.no_grad()
    def _generated(self, batch: Mapping[str, Tensor], breaks: Tensor | None, cache: Any, **options: bool) -> Any:
        model: Any = self.model
        length = batch["input_ids"].shape[1]
        return model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=_settings(model, self.tokenizer, self.max_new_tokens, self.num_beams),
            stopping_criteria=StoppingCriteriaList([] if breaks is None else [EndOfLine(breaks, length)]),
            return_dict_in_generate=True,
            **({} if cache is None else {"cache": cache}),
            **options,
        )


def _checked_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    rows = prompt_ids(prompts, tokenizer)
    if not all(rows):
        raise InputError(f"a prompt must not be empty, number {rows.index([]) + 1} is")
    return rows


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


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return every token that ends a sequence, for the tokenizer or for the model (chat models have several)."""
    of_model = getattr(model.generation_config, "eos_token_id", None)
    several = of_model if isinstance(of_model, list) else [of_model]
    return {end for end in (tokenizer.eos_token_id, *several) if end is not None}
