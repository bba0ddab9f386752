"""The verbs that generate text: generate, chat and serve."""

import logging
import sys
import time
from collections.abc import Generator
from contextlib import closing, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

import shears
from shears.cli.options import Adapter, Values, app, argument, option, with_stage_options
from shears.cli.tables import console
from shears.config import ChatConfig, GenerateConfig, SamplingConfig, ServeConfig
from shears.config.resolve import build
from shears.config.serve_options import RunningConfig
from shears.errors import InputError, reading
from shears.progress import CONTROLS

if TYPE_CHECKING:
    from shears.runtime.continuation import Continuation
    from shears.runtime.engine import Engine

logger = logging.getLogger(__name__)
Model = Annotated[
    str,
    argument("MODEL", "Package, output folder of compress or run, model folder, hub id, .gguf file or smollm2-135m."),
]
REMOVED = dict.fromkeys(CONTROLS)
"""Control characters, removed from what a model says to a terminal."""


@app.command(rich_help_panel="Use")
@with_stage_options("generate", GenerateConfig)
def generate(
    model: Model,
    prompt: Annotated[str, option("TEXT", "Text to continue, or question for a fine-tuned model.")],
    adapter: Adapter = None,
    json_schema: Annotated[
        str | None, option("FILE", "JSON schema that answers follow. Needs the extra `grammar`.")
    ] = None,
    *,
    values: Values,
) -> None:
    """Continue a prompt.

    The text appears as it is generated. A model that shears fine-tuned gets the prompt in the
    format of its training data; any other model continues the text. Use `shears write --prompts`
    to answer a file of prompts.

    \b
    shears generate package --prompt "The capital of France is"
    shears generate sparse --adapter sub_adapter \\
        --prompt "Ann has 3 pens and buys 4. How many?"
    shears generate package --prompt "As JSON: " --json-schema person.json
    """
    from shears.runtime.grammar import schema_text
    from shears.runtime.loading import load

    settings = build(GenerateConfig, "generate", values)
    schema = None
    if json_schema is not None:
        with reading(json_schema):
            schema = schema_text(Path(json_schema).read_text(encoding="utf-8"))
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # the terminal's encoding may lack characters
    engine = load(model, adapter, **settings.model_dump(include=set(RunningConfig.model_fields)))
    sampling = settings.model_dump(include=set(SamplingConfig.model_fields))
    asked = prompt if engine.form is None else engine.encode_chat([{"role": "user", "content": prompt}])
    for piece in engine.stream(asked, json_schema=schema, **sampling):
        _write(piece)
    print()


@app.command(rich_help_panel="Use")
@with_stage_options("chat", ChatConfig)
def chat(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Chat with a model.

    Answers appear as they are generated. /reset starts a new conversation, Ctrl-C stops an answer,
    Ctrl-D quits. If input or output is not a terminal, every line of input starts a new
    conversation, and only the answers are printed. A model that shears fine-tuned gets each text in
    the format of its training data, at temperature 0 unless you set another.

    \b
    shears chat package
    shears chat package --temperature 0 < questions.txt
    """
    from shears.runtime.loading import load

    settings = build(ChatConfig, "chat", values)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    engine = load(model, adapter, **settings.model_dump(include=set(RunningConfig.model_fields)))
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    conversation = Conversation(engine, settings, is_alone=not is_terminal)
    if is_terminal:
        _talk(conversation)
        return
    for line in filter(None, map(str.strip, sys.stdin)):
        for piece in conversation.say(line):
            _write(piece)
        _write("\n")


@app.command(rich_help_panel="Use")
@with_stage_options("serve", ServeConfig)
def serve(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Serve a model over HTTP with OpenAI's API.

    The server answers /v1/chat/completions and /v1/completions (streamed or not), /v1/models and
    /health. It computes requests that run at the same time in one batch. Needs the extra `serve`.

    \b
    shears serve package
    curl http://127.0.0.1:8000/v1/completions \\
        -d '{"model": "package", "prompt": "Once", "max_tokens": 20}'
    """
    shears.serve(model, adapter, **values)


class Conversation:
    """Turns of user and model: the model reads all for every answer; the oldest go if room lacks.

    Each answer has its own random numbers, from the seed and the answer's index. A model that was
    trained on rows without turns sees each text alone; InputError for a system message to it.
    """

    def __init__(self, engine: "Engine", settings: ChatConfig, *, is_alone: bool) -> None:
        self._engine = engine
        engine.batch.keeps_last = True  # every turn continues the sequence of the last one
        self._options = settings.model_dump(include=set(SamplingConfig.model_fields))
        self._system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
        self.turns: list[dict[str, str]] = []
        self.num_forgotten = 0
        self.answer: Continuation | None = None
        self._is_alone = is_alone
        if engine.form is not None and "temperature" not in settings.model_fields_set:
            self._options["temperature"] = 0.0
        if engine.form is not None and engine.form.rows != "chat":
            if settings.system is not None:
                rule = "system needs a model that was trained on chats"
                raise InputError(f"{rule}, this one was trained on {engine.form.words}; leave system out")
            sees = "so it sees each line without the earlier ones"
            logger.warning("this model was trained on %s, not on chats, %s", engine.form.words, sees)
            self._is_alone = True

    def say(self, text: str) -> Generator[str, None, None]:
        """Yield the pieces of the answer to a text; all that was generated becomes a turn."""
        longest = self._engine.backend.max_length
        room = min(self._options["max_new_tokens"], longest // 4)  # tokens kept free for the answer
        turns = [*([] if self._is_alone else self.turns), {"role": "user", "content": text}]
        num_turns = len(turns)
        while len(tokens := self._engine.encode_chat([*self._system, *turns])) + room > longest and len(turns) > 1:
            turns = turns[2:]
        self.answer = answer = self._engine.continuation(tokens, **self._options)
        self._engine.batch.add(answer)
        self._options["seed"] += 1
        self.num_forgotten = num_turns - len(turns)
        self.turns = turns
        try:
            yield from self._engine.pieces(answer)
        except KeyboardInterrupt:
            self._engine.batch.clear()  # it may have cut a step in two
            raise
        finally:
            self.turns.append({"role": "assistant", "content": answer.text})


def _talk(conversation: Conversation) -> None:
    with suppress(ImportError):
        import_module("readline")  # makes lines editable and keeps a history for the arrow keys
    _note("Ctrl-C stops an answer, Ctrl-D quits, /reset starts a new conversation")
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            print("  (Ctrl-D quits)")
            continue
        except EOFError:
            print()
            return
        if text == "/reset":
            conversation.turns.clear()
            _note("new conversation")
        elif text:
            _show(conversation, text)


def _show(conversation: Conversation, text: str) -> None:
    start = time.perf_counter()
    notes = []
    try:
        with closing(conversation.say(text)) as pieces:
            for piece in pieces:
                _write(piece)
    except KeyboardInterrupt:
        notes.append("stopped")
    except InputError as error:
        _note(f"error: {error}")
        return
    answer = conversation.answer
    assert answer is not None
    if answer.finish == "length":
        notes.append("cut off at --max-new-tokens")
    if conversation.num_forgotten:
        notes.append("the context is full, so the model no longer sees the oldest turns")
    print()
    _note(", ".join([f"{len(answer.tokens)} tokens in {time.perf_counter() - start:.1f} s", *notes]))


def _write(text: str) -> None:
    sys.stdout.write(text.translate(REMOVED) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _note(text: str) -> None:
    console.print(Text(f"[{text}]", style="dim"), soft_wrap=True)
