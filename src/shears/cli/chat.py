"""The verbs that make text: generate, chat and serve."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.text import Text

from shears.cli.app import app
from shears.cli.options import Values, with_stage_options
from shears.cli.tables import console
from shears.config import ChatConfig, GenerateConfig, SamplingConfig, ServeConfig
from shears.config.serve import RunningConfig
from shears.errors import InputError

if TYPE_CHECKING:
    from shears.runtime.generation.conversation import Conversation

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Package, model folder, hub id, .gguf or smollm2-135m.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT adapter to put on the model; a package comes with its own.")]
WELCOME = "Ctrl-C stops an answer, Ctrl-D leaves, /reset begins anew, /help says more"
HELP = """Ctrl-C  stops an answer, which stays in the conversation as far as it came
/reset  begins anew
/quit   leaves, as Ctrl-D does
\\       at the end of a line: the text goes on in the next"""
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What a model could drive a terminal with."""
TAB = "    "


@app.command()
@with_stage_options("generate", GenerateConfig)
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to continue, used as it is.")],
    adapter: Adapter = None,
    *,
    values: Values,
) -> None:
    """Continue a prompt, streaming.

    shears generate package --prompt "The capital of France is"

    shears generate sparse --adapter sub_adapter --prompt "Question: Ann has 3 pens and buys 4. How many? Answer:"
    """
    from shears.config.resolve import build
    from shears.runtime.loading import load

    wanted = build(GenerateConfig, "generate", values)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may know fewer characters
    engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
    for piece in engine.stream(prompt, **wanted.model_dump(include=set(SamplingConfig.model_fields))):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


@app.command()
@with_stage_options("chat", ChatConfig)
def chat(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Talk with a model through its chat template, streaming.

    /reset begins anew, /quit or Ctrl-D leaves, Ctrl-C stops an answer. Without a terminal, every line of the input is
    a turn, and only the answers are written.

    shears chat package

    shears chat package --temperature 0 < questions.txt
    """
    from shears.config.resolve import build
    from shears.runtime.generation.conversation import Conversation
    from shears.runtime.generation.worker import Worker
    from shears.runtime.loading import load

    wanted = build(ChatConfig, "chat", values)
    sampling = build(SamplingConfig, "chat", wanted.model_dump(include=set(SamplingConfig.model_fields)))
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may know fewer characters
    engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
    engine.batch.num_kept = 1  # every turn goes on where the last one ended
    with Worker(engine, max_waiting=0) as worker:
        conversation = Conversation(worker, sampling, wanted.system)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _in_terminal(conversation)
        else:
            _in_pipe(conversation)


@app.command()
@with_stage_options("serve", ServeConfig)
def serve(model: Model, adapter: Adapter = None, *, values: Values) -> None:
    """Serve a model over HTTP, as OpenAI's clients expect it.

    /v1/chat/completions and /v1/completions (streamed or not), /v1/models, /health. Requests share the model, one step
    for all of them at a time. Needs pip install 'shears[serve]'.

    \b
    shears serve package
    curl http://127.0.0.1:8000/v1/completions \\
        -d '{"model": "package", "prompt": "Once", "max_tokens": 20}'
    """
    import shears

    shears.serve(model, adapter, **values)


def _in_terminal(conversation: "Conversation") -> None:
    with suppress(ImportError):
        import_module("readline")  # lines can be edited, and the last ones come back with the arrow keys
    _note(WELCOME)
    for text in _turns(_typed):
        if text == "/help":
            console.print(Text(HELP, style="dim"))
            continue
        if text == "/reset":
            conversation.reset()
            _note("forgotten")
            continue
        forgotten = conversation.num_forgotten
        try:
            _show(conversation, text)
        except InputError as error:
            _note(f"error: {error}")
        if conversation.num_forgotten > forgotten:
            _note(f"the oldest {conversation.num_forgotten} turns no longer fit into the model and are forgotten")


def _in_pipe(conversation: "Conversation") -> None:
    for text in _turns(lambda _: _line()):
        if text == "/reset":
            conversation.reset()
            continue
        for piece in conversation.say(text)[1]:
            _write(piece)
        _write("\n")


def _turns(read: Callable[[str], str]) -> Iterator[str]:
    """Yield what is said, until the end or /quit; a line that ends in a backslash goes on in the next."""
    over = False
    while not over:
        lines, over = _one_turn(read)
        text = "\n".join(lines).strip()
        if text == "/quit":
            return
        if text:
            yield text


def _one_turn(read: Callable[[str], str]) -> tuple[list[str], bool]:
    """Return the lines of a turn, and whether the input ended in it."""
    lines = list[str]()
    try:
        lines.append(read("> "))
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read(". "))
    except EOFError:
        return lines, True
    return lines, False


def _typed(prompt: str) -> str:
    """Return a line; Ctrl-C begins it anew."""
    while True:
        try:
            return input(prompt)
        except KeyboardInterrupt:
            print("  (Ctrl-D leaves)")
        except EOFError:
            print()
            raise


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _show(conversation: "Conversation", text: str) -> None:
    """Write an answer as it comes, and how fast that was; Ctrl-C stops it."""
    start = time.perf_counter()
    answer, stream = conversation.say(text)
    first, stopped, lines = 0.0, False, Wrapper(console.width)
    try:
        for piece in stream:
            first = first or time.perf_counter()
            _write(lines.add(piece.translate(CONTROLS)))
    except KeyboardInterrupt:
        stopped = True
    finally:
        stream.close()
        _write(lines.rest())
    end = time.perf_counter()
    notes = [f"{len(answer.tokens)} tokens"]
    if len(answer.tokens) > 1 and first:
        notes += [f"{(len(answer.tokens) - 1) / (end - first):.0f} a second", f"the first after {first - start:.2f} s"]
    if stopped or answer.finish == "length":
        notes.append("stopped" if stopped else "cut off at --max-new-tokens")
    print()
    _note(", ".join(notes))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    console.print(Text(f"[{text}]", style="dim"), soft_wrap=True)


class Wrapper:
    """Takes pieces, returns what can be shown: a word as soon as it is whole. Widths are in cells of a terminal."""

    def __init__(self, width: int) -> None:
        self._width, self._column, self._word = width, 0, ""

    def add(self, piece: str) -> str:
        """Return what to show now."""
        return "".join(self._character(character) for character in piece.replace("\t", TAB))

    def rest(self) -> str:
        """Return the last word."""
        return self._flush()

    def _character(self, character: str) -> str:
        if character == "\n":
            text, self._column = self._flush() + character, 0
            return text
        if character == " ":
            return self._flush() + self._put(character)
        if cell_len(character) > 1:  # scripts without spaces may be broken anywhere
            return self._flush() + self._put(character)
        self._word += character
        return self._flush() if len(self._word) >= self._width else ""

    def _flush(self) -> str:
        word, self._word = self._word, ""
        return self._put(word)

    def _put(self, text: str) -> str:
        size = cell_len(text)
        if self._column + size <= self._width:
            self._column += size
            return text
        self._column = 0 if text == " " else size
        return "\n" if text == " " else f"\n{text}"
