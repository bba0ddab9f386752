"""The engine: prompts in, text out; whole or in pieces, one prompt or many at once.

    engine = shears.runtime.loading.load("package")
    print(engine.generate("The capital of France is", max_new_tokens=8).text)
    for piece in engine.stream("Once upon a time", temperature=0.7, seed=1): ...
    engine.generate("Primes below 20:", json_schema={"type": "array", "items": {"type": "integer"}})
    print(engine.answer([{"role": "user", "content": "What is 1 + 1?"}]).text)

One thread at a time may use an engine; `shears serve` lets several clients share one.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import SamplingConfig
from shears.config.resolve import build
from shears.data.forms import TrainedForm, prompt_in, turns_in
from shears.data.tokens import encode_rendered, prompt_ids, render_turns
from shears.errors import InputError
from shears.runtime.backend import Backend
from shears.runtime.batch import Batch
from shears.runtime.continuation import Continuation, Decode, TextSettings
from shears.runtime.grammar import Grammar, Grammars, Schema

Prompt = str | Sequence[int]


def decoding_by(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Return the function that turns tokens into text, without special tokens."""

    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return lambda tokens: str(tokenizer.decode(list(tokens), **plain))


class Engine:
    """A backend, a tokenizer, and the batch of texts being generated; `end_tokens` end a text.

    `form` is the one of the rows that the model was trained on, None for a model as it came.
    Continuations follow a `json_schema` (a mapping or its text) or a `grammar` of `grammars`. Other
    keywords are SamplingConfig's.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        form: TrainedForm | None = None,
    ) -> None:
        self.backend = backend
        self.form = form
        self.tokenizer = tokenizer
        self.batch = Batch(backend)
        self.text_settings = TextSettings(decoding_by(tokenizer), end_tokens, backend.max_length)
        self.grammars = Grammars(tokenizer, backend.vocab_size, end_tokens)

    def generate(self, prompt: Prompt, **options: Any) -> Continuation:
        return self.generate_all([prompt], **options)[0]

    def generate_all(self, prompts: Sequence[Prompt], **options: Any) -> list[Continuation]:
        if (schema := options.pop("json_schema", None)) is not None:
            options["grammar"] = self.grammars.of_schema(schema)
        texts = [self.continuation(prompt, **options) for prompt in prompts]
        try:
            for text in texts:
                self.batch.add(text)
            while not all(text.done for text in texts):
                self.batch.advance()
        finally:
            for text in texts:
                text.is_left = True
        return [text.result() for text in texts]

    def stream(self, prompt: Prompt, **options: Any) -> Generator[str, None, None]:
        """Yield the continuation of a prompt in pieces; joined, they are that of `generate`."""
        text = self.continuation(prompt, **options)
        self.batch.add(text)
        return self.pieces(text)

    def pieces(self, text: Continuation) -> Generator[str, None, None]:
        """Yield the pieces of a text of the batch; closing the generator ends the text early."""
        try:
            while not text.done:
                if piece := text.take():
                    yield piece
                else:
                    self.batch.advance()  # another stream's call may also finish this text
            if piece := text.result().take():
                yield piece
        finally:
            text.is_left = True

    def answer(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Continuation:
        """Return the answer to a conversation, as `generate`; a text is one turn of the user."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.generate(self.encode_chat(turns), **options)

    def continuation(
        self, prompt: Prompt, *, json_schema: Schema | str | None = None, grammar: Grammar | None = None, **options: Any
    ) -> Continuation:
        """Return the continuation of a prompt, not yet begun: `batch.add` begins it."""
        if json_schema is not None:
            grammar = self.grammars.of_schema(json_schema)
        place = None if grammar is None else grammar.begin()
        return Continuation(self.encode(prompt), build(SamplingConfig, "", options), self.text_settings, place)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a text's tokens, with the tokenizer's start token; tokens stay as they are."""
        if not isinstance(prompt, str):
            return list(prompt)
        return prompt_ids([prompt], self.tokenizer)[0] if prompt else []

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the tokens of a conversation for the model to answer, by its chat template.

        A model that was trained on rows is asked in their form: the last turn of the user alone if
        they were no chats. `tools` are functions in OpenAI's form, which the template describes to
        the model.
        """
        if self.form is not None and not tools:
            asked = [turn.get("content") for turn in messages if turn["role"] == "user"]
            if self.form.rows != "chat" and asked and isinstance(asked[-1], str):
                return self.encode(prompt_in(self.form, asked[-1]))
            messages = turns_in(self.form, messages)
        if self.tokenizer.chat_template is None:
            raise InputError("a chat needs a chat template, this model has none; use generate")
        return encode_rendered([render_turns(messages, self.tokenizer, answering=True, tools=tools)], self.tokenizer)[0]
