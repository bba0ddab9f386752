"""The engine: prompts in, text out; whole or in pieces, one prompt or many at once.

    engine = shears.runtime.load("package")
    print(engine.generate("The capital of France is", max_new_tokens=8).text)
    for piece in engine.stream("Once upon a time", temperature=0.7, seed=1): ...
    engine.generate("Ann, aged 31:", json_schema={"type": "object", "properties": {"age": {"type": "integer"}}})
    print(engine.answer([{"role": "user", "content": "What is 1 + 1?"}]).text)

One thread at a time may use an engine; shears.runtime.generation.worker lets several share one.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import SamplingConfig
from shears.config.resolve import build
from shears.data.chat import render_turns
from shears.data.forms import prompt_in, turns_in
from shears.data.tokens import encode_rendered, prompt_ids
from shears.errors import InputError
from shears.records.trained_form import TrainedForm
from shears.runtime.generation.answer import Answer, Demands, Generation, TextSettings
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.batch import Batch
from shears.runtime.generation.grammar import Grammar, Grammars, Schema

Prompt = str | Sequence[int]


class Engine:
    """A backend, a tokenizer, and the batch of answers being generated; `end_tokens` end a text.

    `form` is the one of the rows that the model was trained on, None for a model as it came.
    Answers of `generate`, `generate_all`, `stream` and `answer` follow a `json_schema` (a mapping or
    its text) or a `grammar` of `grammars`, and carry log-probabilities of each token, and of so many
    likely ones beside it, if `num_likeliest` is not None. Other keywords are SamplingConfig's.
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
        self.batch = Batch[Answer](backend)
        self.text_settings = TextSettings(self._decode, end_tokens, backend.max_length)
        self.grammars = Grammars(tokenizer, backend.vocab_size, end_tokens)

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """Return the continuation of a prompt (text, or tokens).

        InputError for an empty or too long prompt, an option out of range, and an unsupported schema.
        """
        return self.generate_all([prompt], **options)[0]

    def generate_all(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Return the continuations of several prompts, in their order, generated together.

        Each is the text that `generate` gives for its prompt, apart from the backend's rounding.
        """
        if (schema := options.pop("json_schema", None)) is not None:
            options["grammar"] = self.grammars.of_schema(schema)
        answers = [self.new_answer(prompt, **options) for prompt in prompts]
        try:
            for answer in answers:
                self.batch.add(answer)
            while not all(answer.done for answer in answers):
                self.batch.advance()
        finally:
            for answer in answers:
                self.batch.remove(answer)
        return [answer.result() for answer in answers]

    def stream(self, prompt: Prompt, **options: Any) -> Generator[str, None, None]:
        """Yield the continuation of a prompt in pieces; joined, they are that of `generate`."""
        answer = self.new_answer(prompt, **options)
        self.batch.add(answer)
        return self._pieces(answer)

    def _pieces(self, answer: Answer) -> Generator[str, None, None]:
        try:
            while not answer.done:
                if piece := answer.take():
                    yield piece
                else:
                    self.batch.advance()  # another stream's call may also finish this answer
            if piece := answer.take():
                yield piece
            answer.result()  # raises the error that ended the answer
        finally:
            self.batch.remove(answer)

    def answer(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> Generation:
        """Return the answer to a conversation, as `generate`; a text is one turn of the user.

        InputError as in `encode_chat` and `generate`.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.generate(self.encode_chat(turns), **options)

    def new_answer(
        self,
        prompt: Prompt,
        *,
        json_schema: Schema | str | None = None,
        grammar: Grammar | None = None,
        num_likeliest: int | None = None,
        **options: Any,
    ) -> Answer:
        """Return the continuation of a prompt, not yet begun: `batch.add` begins it."""
        if json_schema is not None:
            grammar = self.grammars.of_schema(json_schema)
        demands = Demands(None if grammar is None else grammar.begin(), num_likeliest)
        sampling = build(SamplingConfig, "", options)
        return Answer(self.encode(prompt), sampling, self.text_settings, demands=demands)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a text's tokens, with the tokenizer's start token; tokens stay as they are.

        InputError for anything else.
        """
        if not isinstance(prompt, str):
            if others := [token for token in prompt if not hasattr(token, "__index__")]:
                raise InputError(
                    f"a prompt must be a text or token ids, got {others[0]!r:.60} in a list; give messages to `answer`"
                )
            return list(prompt)
        return prompt_ids([prompt], self.tokenizer)[0] if prompt else []

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the tokens of a conversation for the model to answer, by its chat template.

        A model that was trained on rows is asked in their form: the last turn of the user alone if
        they were no chats. `tools` are functions in OpenAI's form, which the template describes to
        the model. InputError if there is no template, or if the messages do not suit it.
        """
        if self.form is not None and not tools:
            if (prompt := self._plain_prompt(messages, self.form)) is not None:
                return self.encode(prompt)
            messages = turns_in(self.form, messages)
        if self.tokenizer.chat_template is None:
            raise InputError("a chat needs a tokenizer with a chat template, and this model has none; use generate")
        return encode_rendered([render_turns(messages, self.tokenizer, answering=True, tools=tools)], self.tokenizer)[0]

    def _plain_prompt(self, messages: Sequence[Mapping[str, Any]], form: TrainedForm) -> str | None:
        """Return the last turn of the user in a form without turns; None for chats."""
        texts = [turn.get("content") for turn in messages if turn["role"] == "user"]
        is_plain = form.rows != "chat" and texts and isinstance(texts[-1], str)
        return prompt_in(form, str(texts[-1])) if is_plain else None

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
