"""The code blocks of a Markdown page: shell commands, recipes and Python."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?")
OTHER_PROGRAMS = {"cd", "from", "git", "import", "mkdir", "pip", "rm"}  # whose words may be `shears`
ENDS = {";", "|", "||", "&", "&&", ">", ">>", "2>", "<", "(", ")"}  # between the commands of a line


@dataclass(frozen=True)
class Block:
    """A code block without its indentation; an indented one has no language."""

    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page, then the indented ones that follow an empty line."""
    fenced = [
        Block(match["language"], _dedented(match["text"], len(match["indent"]))) for match in FENCE.finditer(page)
    ]
    return [*fenced, *(Block("", text) for text in _indented(FENCE.sub("", page)))]


def _dedented(text: str, width: int) -> str:
    return re.sub(rf"^ {{0,{width}}}", "", text, flags=re.MULTILINE)


def _indented(prose: str) -> Iterator[str]:
    for match in re.finditer(r"(?:\A|\n\n)((?: {4}[^\n]*(?:\n+(?= {4})|\n|\Z))+)", prose):
        yield _dedented(match[1], 4)


def files_of(block: Block) -> dict[str, str]:
    """Return the files that a block writes with `cat > NAME <<'EOF'`."""
    written = re.finditer(r"cat > ?(\S+) <<'?(\w+)'?\n(.*?)^\2$", block.text, re.DOTALL | re.MULTILINE)
    return {match[1]: match[3] for match in written}


def shears_calls(block: Block) -> Iterator[list[str]]:
    """Yield the words after `shears` of each command in a block: alone, in a pipe, behind a launcher."""
    for command in _commands(block.text):
        words: list[str] = []
        for token in [*_tokens(command), ";"]:
            if token not in ENDS:
                words.append(token)
                continue
            start = _start(words)
            if start is not None:
                yield words[start:]
            words = []


def _start(words: Sequence[str]) -> int | None:
    """Return where the words after `shears` begin; None if it is not called."""
    program = next((word for word in words if "=" not in word), "")  # behind settings of the environment
    if program in OTHER_PROGRAMS:
        return None
    for index, word in enumerate(words):
        if PurePath(word).name == "shears" and words[index - 1 : index] != ["-t"]:
            return index + 1
    return None


def _commands(text: str) -> Iterator[str]:
    """Yield the commands of a script, lines with open quotes or a backslash at their end joined."""
    lines = iter(text.replace("\\\n", " ").splitlines())
    for line in lines:
        command = line.removeprefix("$ ").removeprefix("!")  # of a notebook
        if "shears" not in command and not HEREDOC.search(command):
            continue
        while _is_open(command) and (following := next(lines, None)) is not None:
            command += "\n" + following
        if end := HEREDOC.search(command):
            for following in lines:
                if following == end[1]:
                    break
            continue
        yield command


def _is_open(command: str) -> bool:
    try:
        _tokens(command)
    except ValueError:
        return True
    return False


def _tokens(command: str) -> list[str]:
    """Return the words of a command without its comment; ValueError if a quote is open."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)
