"""generate and chat, in a pipe and in a real (pseudo) terminal; words are wrapped as they come."""

import io
import os
import pty
import signal
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from shears.cli import application, chat, main
from shears.cli.chat import Wrapper, _turns
from shears.errors import InputError
from shears.records.artifacts import MERGED, write_json
from shears.runtime import load, loading
from tests.conftest import Call
from tests.processes import DEADLINE, Process, until
from tests.runtime.generation.backends import TOKENIZER, always, engine_of, lively
from tests.tiny import tiny_tokenizer

SHORT = ["--max-new-tokens", "5", "--temperature", "0"]
LETTER = TOKENIZER("z")["input_ids"][0]
WORDS = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=20)


@pytest.mark.parametrize("each", [True, False])
def test_every_line_of_a_pipe_is_asked_and_only_answers_are_written(
    each: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lively().save_pretrained(folder := tmp_path / "model")
    tiny_tokenizer().save_pretrained(folder)
    engine, turns, expected = load(folder), [{"role": "system", "content": "Be short."}], ""
    for text in ("hi", "a\nb"):
        del turns[1 if each else len(turns) :]
        turns.append({"role": "user", "content": text})
        turns.append(
            {"role": "assistant", "content": engine.generate(engine.encode_chat(turns), max_new_tokens=5).text}
        )
        expected += turns[-1]["content"] + "\n"
    lines = io.TextIOWrapper(io.BytesIO(b"hi\n\na\\\nb\n/reset\n/quit\nnever\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    monkeypatch.setattr(sys, "argv", ["shears", "chat", str(folder), "--system", "Be short.", *SHORT])
    sys.argv += [] if each else ["--no-each"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capfd.readouterr().out == expected


def test_a_model_of_plain_rows_sees_each_line_in_their_form(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    lively().save_pretrained(folder := tmp_path / "model")
    tiny_tokenizer().save_pretrained(folder)
    expected = load(folder).generate("Question: hi\nAnswer:", max_new_tokens=5).text
    write_json(folder / MERGED, {"template": "question", "form": {"rows": "instruction"}})
    for words in (["chat", folder], ["generate", folder, "--prompt", "hi"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\nhi\n")))
        code, output, errors = call(*words, "--max-new-tokens", "5")
        assert (code, output) == (0, f"{expected}\n" * (2 if words[0] == "chat" else 1))  # at temperature 0
        assert "was trained on instructions in the template question" in errors
        assert ("not on chats" in errors) is (words[0] == "chat")
    code, output, _ = call("generate", folder, "--prompt", "hi", "--as-is", "--max-new-tokens", "5")
    assert (code, output) == (0, load(folder).generate("hi", max_new_tokens=5).text + "\n")
    code, _, errors = call("chat", folder, "--system", "Be short.")
    assert code == 2
    assert "leave --system out" in errors


@pytest.mark.parametrize(("text", "turns"), [("hi\na\\\nb", ["hi", "a\nb"]), ("hi\\", ["hi"]), ("hi\n/quit\\", ["hi"])])
def test_an_unfinished_last_line_is_a_turn(text: str, turns: list[str]) -> None:
    lines = iter(text.splitlines())

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    assert list(_turns(read)) == turns


class Terminal:
    """A pseudo-terminal with a process in it."""

    def __init__(self, log: Path, words: list[str]) -> None:
        self._master, self._slave = pty.openpty()
        self._read = ""
        self.process = Process(log, self._become, words)

    def _become(self, words: list[str]) -> None:
        os.setsid()
        os.close(os.open(os.ttyname(self._slave), os.O_RDWR))  # which makes it the terminal of this session
        for number in range(3):
            os.dup2(self._slave, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        modes = termios.tcgetattr(0)
        modes[3] |= termios.NOFLSH  # Ctrl-C throws nothing away: on a busy machine, what was written after it went, too
        termios.tcsetattr(0, termios.TCSANOW, modes)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
        sys.argv = ["shears", *words]
        os.environ["TERM"] = "dumb"
        try:
            main()
        except SystemExit as ended:
            sys.stdout.flush()
            if ended.code:
                raise

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def press_until(self, key: str, text: str) -> None:
        """Press a key until a text appears: one between Python's prompt and its waiting for keys waits for the next."""
        end = time.monotonic() + DEADLINE
        while True:
            self.type(key)
            try:
                self.wait_for(text, 5.0)
            except AssertionError:
                assert time.monotonic() < end, self._read
            else:
                return

    def wait_for(self, text: str, deadline: float = DEADLINE) -> str:
        """Return what is shown from the last call to where a text appears."""
        os.set_blocking(self._master, False)

        def seen() -> bool:
            try:
                self._read += os.read(self._master, 65536).decode(errors="replace")
            except BlockingIOError:
                assert self.process.poll() is None, self._read
            return text in self._read

        until(seen, deadline)
        before, _, self._read = self._read.partition(text)
        return before

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Terminal]:
    """A chat with a model that says z for ever."""
    model = always(LETTER)
    model.config.max_position_embeddings = 10**5
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    terminal = Terminal(tmp_path / "log", ["chat", str(tmp_path / "model"), "--max-new-tokens", "50000"])
    yield terminal
    terminal.close()


def test_a_terminal_shows_the_answer_as_it_comes_and_ctrl_c_stops_it_alone(endless: Terminal) -> None:
    endless.wait_for("Ctrl-C stops an answer")
    endless.wait_for("> ")
    endless.type("hello\n")
    endless.wait_for("zzz")
    endless.type("\x03")
    assert "per second" in endless.wait_for("stopped]")
    endless.wait_for("> ")
    endless.press_until("\x03", "(Ctrl-D quits)")
    endless.wait_for("> ")
    endless.type("/reset\n")
    endless.wait_for("[new conversation]")
    endless.wait_for("> ")
    endless.type("a" * 3000 + "\\\n" + "again\n")
    endless.wait_for(". ")
    endless.wait_for("zzz")
    endless.type("\x03")
    endless.wait_for("> ")
    endless.type("\x04")
    assert endless.process.wait() == 0


class Speaker:
    """An engine that says what few encodings know."""

    form = None

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yield two pieces."""
        yield from (f"{prompt}é", "…")


def test_characters_that_the_output_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: Speaker())
    for charset, text in (("ascii", "a??\n"), ("utf-8", "aé…\n")):
        result = CliRunner(charset=charset).invoke(application(), ["generate", "package", "--prompt", "a"])
        assert (result.exit_code, result.stdout) == (0, text)


def _wrapped(pieces: list[str], width: int) -> str:
    wrapper = Wrapper(width)
    return "".join([*map(wrapper.add, pieces), wrapper.rest()])


@given(WORDS, st.integers(10, 30), st.integers(1, 7))
def test_lines_are_those_of_the_whole_text_however_it_was_cut(words: list[str], width: int, size: int) -> None:
    text = " ".join(words)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    lines = [line.rstrip(" ") for line in _wrapped(pieces, width).split("\n")]
    assert lines == textwrap.wrap(text, width)


@given(st.text("ab \n\tあ", max_size=60), st.integers(2, 9))
def test_no_line_is_too_long_and_nothing_is_lost(text: str, width: int) -> None:
    shown = _wrapped(list(text), width)
    assert all(cell_len(line) <= max(width, 2) for line in shown.split("\n"))
    assert [c for c in shown if not c.isspace()] == [c for c in text if not c.isspace()]


def test_a_word_is_shown_once_it_is_whole() -> None:
    wrapper = Wrapper(20)
    assert [wrapper.add(piece) for piece in ("Hel", "lo", " wor", "ld.", "\n")] == ["", "", "Hello ", "", "world.\n"]
    assert _wrapped(["    x = 1\n"], 20) == "    x = 1\n"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_generated_control_characters_reach_a_file_but_no_terminal(
    verb: str, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return is_terminal

    escapes = "a\x1b]0;title\x07b\x9b2Jc"
    monkeypatch.setattr(
        loading, "load", lambda *_, **__: SimpleNamespace(stream=lambda *_, **__: iter([escapes]), form=None)
    )
    output = Stream(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    if verb == "generate":
        monkeypatch.setattr(sys, "argv", ["shears", "generate", "model", "--prompt", "x"])
        with pytest.raises(SystemExit):
            main()
    else:  # lines of a file as turns, answers to a terminal
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
        chat._in_pipe(SimpleNamespace(say=lambda _: (None, iter([escapes]))), False)  # type: ignore[arg-type]
    output.seek(0)
    assert output.read() == ("a]0;titleb2Jc\n" if is_terminal else f"{escapes}\n")


def test_generate_holds_its_text_to_the_schema_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    engine = engine_of(lively())
    monkeypatch.setattr(loading, "load", lambda *_, **__: engine)
    schema = tmp_path / "schema.json"
    arguments = ["generate", "package", "--prompt", "a", "--json-schema", str(schema)]
    schema.write_text('{"enum": ["one", "two"]}')
    result = CliRunner().invoke(application(), arguments)
    assert (result.exit_code, result.stdout) in [(0, '"one"\n'), (0, '"two"\n')]
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    for content, message in (
        (b"{", "must be JSON"),
        (b"[]", "must be a JSON object, got []"),
        (b"\xff", "readable file"),
    ):
        schema.write_bytes(content)
        error = CliRunner().invoke(application(), arguments).exception
        assert isinstance(error, InputError)
        assert message in str(error)
