"""generate and chat, in a pipe and in a real (pseudo) terminal."""

import io
import os
import pty
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from shears.cli import application, main
from shears.cli.chat import Conversation
from shears.config import ChatConfig
from shears.errors import InputError
from shears.records.artifacts import write_json
from shears.runtime import loading
from shears.runtime.loading import load
from tests.conftest import Call
from tests.processes import DEADLINE, Process, until
from tests.runtime.backends import TOKENIZER, always, engine_of, lively
from tests.tiny import LONGEST, tiny_tokenizer

LETTER = TOKENIZER("z")["input_ids"][0]


def _conversation(model: Any = None, **settings: Any) -> Conversation:
    options = {"max_new_tokens": 6, "temperature": 0.0, **settings}
    return Conversation(engine_of(model or lively()), ChatConfig(**options), is_alone=False)


def _said(conversation: Conversation, text: str) -> str:
    return "".join(conversation.say(text))


def test_an_answer_is_the_models_own_after_all_turns() -> None:
    conversation = _conversation(system="Be short.")
    turns = [{"role": "system", "content": "Be short."}]
    alone = engine_of(lively())
    for text in ("hi", "and?", "so"):
        turns.append({"role": "user", "content": text})
        turns.append({"role": "assistant", "content": alone.answer(turns, max_new_tokens=6).text})
        assert _said(conversation, text) == turns[-1]["content"]
    assert conversation.turns == turns[1:]


def test_the_oldest_turns_are_forgotten_when_the_model_is_full() -> None:
    conversation = _conversation(always(LETTER), max_new_tokens=30, system="s")
    assert [len(_said(conversation, f"{number}" * 20)) for number in range(9)] == [30] * 9
    assert conversation.num_forgotten > 0
    assert [turn["role"] for turn in conversation.turns[:2]] == ["user", "assistant"]
    before = list(conversation.turns)
    with pytest.raises(InputError, match="must be shorter than the model's"):
        _said(conversation, "a" * LONGEST)
    assert conversation.turns == before  # a paste that does not fit wipes nothing


def test_every_line_of_a_pipe_is_asked_and_only_answers_are_written(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    lively().save_pretrained(folder := tmp_path / "model")
    tiny_tokenizer().save_pretrained(folder)
    engine = load(folder)
    system = {"role": "system", "content": "Be short."}
    asked = [[system, {"role": "user", "content": text}] for text in ("hi", "a")]
    expected = "".join(f"{engine.answer(turns, max_new_tokens=5).text}\n" for turns in asked)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n\na\n")))
    words = ["chat", folder, "--system", "Be short.", "--max-new-tokens", "5", "--temperature", "0"]
    assert call(*words)[:2] == (0, expected)


def test_a_model_of_plain_rows_sees_each_line_in_their_form(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    lively().save_pretrained(folder := tmp_path / "model")
    tiny_tokenizer().save_pretrained(folder)
    expected = load(folder).generate("Question: hi\nAnswer:", max_new_tokens=5).text
    write_json(folder / "merged.json", {"template": "question", "form": {"rows": "instruction"}})
    for words in (["chat", folder], ["generate", folder, "--prompt", "hi"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\nhi\n")))
        code, output, errors = call(*words, "--max-new-tokens", "5")
        assert (code, output) == (0, f"{expected}\n" * (2 if words[0] == "chat" else 1))  # at temperature 0
        assert "was trained on instructions in the template question" in errors
        assert ("not on chats" in errors) is (words[0] == "chat")
    code, _, errors = call("chat", folder, "--system", "Be short.")
    assert code == 2
    assert "system needs a model that was trained on chats" in errors


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
    assert "tokens in" in endless.wait_for("stopped]")
    endless.wait_for("> ")
    endless.press_until("\x03", "(Ctrl-D quits)")
    endless.wait_for("> ")
    endless.type("/reset\n")
    endless.wait_for("[new conversation]")
    endless.wait_for("> ")
    endless.type("again\n")
    endless.wait_for("zzz")
    endless.type("\x03")
    endless.wait_for("> ")
    endless.type("\x04")
    assert endless.process.wait() == 0


@pytest.mark.parametrize("is_terminal", [True, False])
def test_generated_control_characters_reach_a_file_but_no_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return is_terminal

    escapes = "a\x1b]0;title\x07b\x9b2Jc…"
    engine = SimpleNamespace(stream=lambda *_, **__: iter([escapes]), form=None)
    monkeypatch.setattr(loading, "load", lambda *_, **__: engine)
    output = Stream(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["shears", "generate", "model", "--prompt", "x"])
    with pytest.raises(SystemExit):
        main()
    output.seek(0)
    assert output.read() == ("a]0;titleb2Jc?\n" if is_terminal else f"{escapes[:-1]}?\n")


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
    for content in (b"{", b"[]", b"\xff"):
        schema.write_bytes(content)
        assert isinstance(CliRunner().invoke(application(), arguments).exception, InputError)
