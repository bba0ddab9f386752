"""The verbs that generate text: generate, chat and serve."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.cells import cell_len
from rich.text import Text

import shears
from shears.cli.options import Adapter, Values, app, argument, option, switch, with_stage_options
from shears.cli.tables import console
from shears.config import ChatConfig, GenerateConfig, SamplingConfig, ServeConfig
from shears.config.resolve import build
from shears.config.serve import RunningConfig
from shears.errors import InputError
from shears.progress import CONTROLS

if TYPE_CHECKING:
    from shears.records.trained_form import TrainedForm
    from shears.runtime.generation.conversation import Conversation

logger = logging.getLogger(__name__)
Each = Annotated[
    bool | None,
    switch(
        "--each/--no-each",
        "Make each line a conversation of its own; default: if input or output is not a terminal.",
        show_default=False,
    ),
]
Model = Annotated[str, argument("MODEL", "Package, model, hub id, .gguf or smollm2-135m.")]
WELCOME = "Ctrl-C stops an answer, Ctrl-D quits, /reset starts a new conversation, /help shows help"
HELP = """Ctrl-C  stops an answer; the part shown stays in the conversation
/reset  starts a new conversation
/quit   quits, as Ctrl-D does
\\       at the end of a line: the text continues on the next line"""
REMOVED = dict.fromkeys(CONTROLS)
"""Control characters, removed from what a model says to a terminal."""


@app.command(rich_help_panel="Use")
@with_stage_options("generate", GenerateConfig)
def generate(  # noqa: PLR0913  (each is an option)
    model: Model,
    prompt: Annotated[str | None, option("TEXT", "Text to continue or, after a training, to answer.")] = None,
    data: Annotated[str | None, option("FILE", "Rows or chats to answer.")] = None,
    output: Annotated[str | None, option("FILE", "JSONL file to write: the rows of --data with `generated`.")] = None,
    adapter: Adapter = None,
    json_schema: Annotated[
        str | None, option("FILE", "JSON schema that every answer must follow; needs the extra `grammar`.")
    ] = None,
    *,
    as_is: Annotated[bool, switch("--as-is", "Continue the text of --prompt as it is, also after a training.")] = False,
    values: Values,
) -> None:
    """Continue a prompt, or answer a file of prompts.

    The text appears as it is generated. A model that was trained on rows is asked in their form,
    any other continues the text. With --data, many prompts are answered at once, by other models
    in their chat template. The same command continues an interrupted one.

    \b
    shears generate package --prompt "The capital of France is"
    shears generate sparse --adapter sub_adapter \\
        --prompt "Ann has 3 pens and buys 4. How many?"
    shears generate package --prompt "As JSON: " --json-schema person.json
    shears generate package --data questions.jsonl --output answers.jsonl
    """
    settings = build(GenerateConfig, "generate", values)
    if data is not None and output is not None and prompt is None:
        if as_is:
            raise InputError("as_is needs --prompt, got --data; leave it out, or use shears serve")
        _answer_file(model, data, output, adapter, _schema(json_schema), settings)
        return
    if prompt is None or data is not None or output is not None:
        given = {"--prompt": prompt, "--data": data, "--output": output}
        got = ", ".join(name for name, value in given.items() if value is not None) or "none of them"
        raise InputError(f"generate needs --prompt TEXT, or --data FILE with --output FILE, got {got}")
    from shears.runtime.loading import load

    schema = _schema(json_schema)
    _replace_unknown_characters(sys.stdout)
    engine = load(model, adapter, **settings.model_dump(include=set(RunningConfig.model_fields)))
    sampling = settings.model_dump(include=set(SamplingConfig.model_fields))
    is_asked = engine.form is not None and not as_is
    asked = engine.encode_chat([{"role": "user", "content": prompt}]) if is_asked else prompt
    for piece in engine.stream(asked, json_schema=schema, **sampling):
        _write(piece)
    print()


def _schema(path: str | None) -> str | None:
    """Return the text of a file with a JSON schema; InputError if it cannot be one, before a model is loaded."""
    from shears.runtime.generation.grammar import schema_text

    if path is None:
        return None
    try:
        return schema_text(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--json-schema must be a readable file of JSON, got {path}: {error}") from None


def _answer_file(
    model: str, data: str, output: str, adapter: str | None, schema: str | None, settings: GenerateConfig
) -> None:
    from shears.writing.answers import answer_file

    path = answer_file(model, data, output, adapter, json_schema=schema, **settings.model_dump())
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print(f"{path}: {len(rows):,} answers, {sum(row['cut'] for row in rows):,} cut at {settings.max_new_tokens} tokens")


@app.command(rich_help_panel="Use")
@with_stage_options("chat", ChatConfig)
def chat(model: Model, adapter: Adapter = None, each: Each = None, *, values: Values) -> None:
    """Talk with a model in its chat template; answers appear as they are generated.

    /reset starts a new conversation, /quit or Ctrl-D quits, Ctrl-C stops an answer. If input or
    output is not a terminal, every input line is a conversation of its own, and only the answers are
    printed. A model that was trained on rows is asked in their form, at temperature 0 unless another
    is given.

    \b
    shears chat package
    shears chat package --temperature 0 < questions.txt
    """
    from shears.runtime.generation.conversation import Conversation
    from shears.runtime.generation.worker import Worker
    from shears.runtime.loading import load

    settings = build(ChatConfig, "chat", values)
    _replace_unknown_characters(sys.stdin, sys.stdout)
    engine = load(model, adapter, **settings.model_dump(include=set(RunningConfig.model_fields)))
    engine.batch.num_kept = 1  # every turn continues the sequence of the last one
    given = settings.model_dump(include=set(SamplingConfig.model_fields))
    if engine.form is not None and "temperature" not in settings.model_fields_set:
        given["temperature"] = 0.0
    is_plain = _refuse_turns(engine.form, settings)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    is_alone = is_plain or (not is_terminal if each is None else each)
    with Worker(engine, max_waiting=0) as worker:
        conversation = Conversation(worker, build(SamplingConfig, "chat", given), settings.system)
        if is_terminal:
            _in_terminal(conversation, is_alone)
        else:
            _in_pipe(conversation, is_alone)


def _refuse_turns(form: "TrainedForm | None", settings: ChatConfig) -> bool:
    """Warn of a model that was trained on rows without turns; return whether it was.

    InputError for a system message, which it has never seen.
    """
    if form is None or form.rows == "chat":
        return False
    if settings.system is not None:
        rule = "system needs a model that was trained on chats, or on none"
        raise InputError(f"{rule}, got one trained on {form.words}; leave --system out")
    logger.warning(
        "this model was trained on %s, not on chats: it sees each line alone, and no line before it", form.words
    )
    return True


@app.command(rich_help_panel="Use")
@with_stage_options("serve", ServeConfig)
def serve(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Serve a model over HTTP with OpenAI's API.

    /v1/chat/completions and /v1/completions (streamed or not), /v1/models, /health. Requests that
    run at the same time are batched. Needs the extra `serve`.

    \b
    shears serve package
    curl http://127.0.0.1:8000/v1/completions \\
        -d '{"model": "package", "prompt": "Once", "max_tokens": 20}'
    """
    shears.serve(model, adapter, **values)


def _replace_unknown_characters(*streams: Any) -> None:
    """Replace characters that the encoding of a terminal lacks."""
    for stream in streams:
        stream.reconfigure(errors="replace")


def _in_terminal(conversation: "Conversation", is_alone: bool) -> None:
    with suppress(ImportError):
        import_module("readline")  # makes lines editable and keeps a history for the arrow keys
    _note(WELCOME)
    for text in _turns(_typed_line):
        if text == "/help":
            console.print(Text(HELP, style="dim"))
            continue
        if text == "/reset":
            conversation.reset()
            _note("new conversation")
            continue
        if is_alone:
            conversation.reset()
        num_forgotten = conversation.num_forgotten
        try:
            _show(conversation, text)
        except InputError as error:
            _note(f"error: {error}")
        if conversation.num_forgotten > num_forgotten:
            turns = f"the oldest {conversation.num_forgotten} turns"
            _note(f"context limit reached: the model no longer sees {turns}")


def _in_pipe(conversation: "Conversation", is_alone: bool) -> None:
    for text in _turns(lambda _: _piped_line()):
        if text == "/reset" or is_alone:
            conversation.reset()
        if text == "/reset":
            continue
        for piece in conversation.say(text)[1]:
            _write(piece)
        _write("\n")


def _turns(read: Callable[[str], str]) -> Iterator[str]:
    """Yield the turns until the input ends or /quit; a backslash at the end of a line continues one."""
    is_over = False
    while not is_over:
        text = ""
        try:
            text = read("> ")
            while text.endswith("\\"):
                text = f"{text[:-1]}\n"
                text += read(". ")
        except EOFError:
            is_over = True
        text = text.strip()
        if text == "/quit":
            return
        if text:
            yield text


def _typed_line(prompt: str) -> str:
    """Return a line typed in the terminal; Ctrl-C discards it and asks again."""
    while True:
        try:
            return input(prompt)
        except KeyboardInterrupt:
            print("  (Ctrl-D quits)")
        except EOFError:
            print()
            raise


def _piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _show(conversation: "Conversation", text: str) -> None:
    """Print an answer while it is generated, then its speed; Ctrl-C stops it."""
    start = time.perf_counter()
    answer, stream = conversation.say(text)
    first = 0.0
    is_stopped = False
    wrapper = Wrapper(console.width)
    try:
        for piece in stream:
            first = first or time.perf_counter()
            _write(wrapper.add(piece.translate(REMOVED)))
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        stream.close()
        _write(wrapper.rest())
    end = time.perf_counter()
    notes = [f"{len(answer.tokens)} tokens"]
    if len(answer.tokens) > 1 and first:
        speed = (len(answer.tokens) - 1) / (end - first)
        notes += [f"{speed:.0f} per second", f"first after {first - start:.2f} s"]
    if is_stopped or answer.finish == "length":
        notes.append("stopped" if is_stopped else "cut off at --max-new-tokens")
    print()
    _note(", ".join(notes))


def _write(text: str) -> None:
    sys.stdout.write(text.translate(REMOVED) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _note(text: str) -> None:
    console.print(Text(f"[{text}]", style="dim"), soft_wrap=True)


class Wrapper:
    """Wraps text that arrives in pieces: a word is returned once it is complete.

    Widths are in terminal cells.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0
        self._word = ""

    def add(self, piece: str) -> str:
        """Return the text to print now."""
        return "".join(self._character(character) for character in piece.replace("\t", "    "))

    def rest(self) -> str:
        """Return the last word, on a new line if it does not fit."""
        word = self._word
        self._word = ""
        return self._placed(word)

    def _character(self, character: str) -> str:
        if character == "\n":
            text = self.rest() + character
            self._column = 0
            return text
        if character == " " or cell_len(character) > 1:  # scripts without spaces may break anywhere
            return self.rest() + self._placed(character)
        self._word += character
        return self.rest() if len(self._word) >= self._width else ""

    def _placed(self, text: str) -> str:
        size = cell_len(text)
        if self._column + size <= self._width:
            self._column += size
            return text
        self._column = 0 if text == " " else size
        return "\n" if text == " " else f"\n{text}"
