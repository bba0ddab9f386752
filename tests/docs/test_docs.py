"""The tutorials' commands run from top to bottom; every page, verb and flag that a page names exists."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from shears.cli import application, main
from tests.docs.blocks import FENCE
from tests.end_to_end.recipe import write_recipe

ROOT = Path(__file__).parents[2]
INDENTED = re.compile("^ {4}.*$", flags=re.MULTILINE)
SPAN = re.compile("`([^`]+)`")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TUTORIALS = {  # scripts of the pages that are read one after the other, and the verbs that they call
    "demo.md your-own-data.md": "run report inspect generate run run report inspect generate push",
    "chat.md": "data run chat export inspect",
}
SMALLER = {"smollm2-135m": "base", "sequence_length: 256": "sequence_length: 64", "epochs: 8": "epochs: 1",
           "epochs: 10": "epochs: 1",
           "me/sparse --dry-run": "me/sparse --base me/base --dry-run",  # the tiny base is a folder
           "--no-each": "--no-each --max-new-tokens 4"}  # fmt: skip


def script(pages: str) -> str:
    """Return the commands of tutorials, named with spaces between, as one script."""
    texts = [(ROOT / "docs" / "tutorials" / page).read_text() for page in pages.split()]
    return "".join(block for text in texts for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a shell script: quotes and here-documents may hold line ends."""
    lines = iter(block.splitlines(keepends=True))
    for line in lines:
        command = line
        if "<<'EOF'" in line:
            command += "".join(iter(lambda: next(lines), "EOF\n")) + "EOF\n"
        while command.count('"') % 2 and "EOF" not in command:
            command += next(lines)
        yield command


@pytest.mark.parametrize("pages", TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(pages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, in this process; the slow test below does it as a reader would."""
    recipe = write_recipe(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe.rename(tmp_path / "recipes" / "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    text = script(pages)
    for real, tiny in SMALLER.items():
        text = text.replace(real, tiny)
    seen = []
    for command in commands(text):
        if not command.startswith("shears "):
            subprocess.run(["bash", "-ec", command], check=True)
            continue
        words, _, source = command.partition(" < ")
        with Path(source.strip() or os.devnull).open() as given:
            monkeypatch.setattr(sys, "stdin", given)
            monkeypatch.setattr(sys, "argv", shlex.split(words))
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 0, command
        seen.append(command.split()[1])
    assert " ".join(seen) == TUTORIALS[pages]


def test_tutorials_are_made_smaller_where_they_can_be() -> None:
    text = "".join(map(script, TUTORIALS))
    assert [real for real in SMALLER if real not in text] == []


@pytest.mark.slow
@pytest.mark.timeout(2400)  # minutes on two free cores, many more on busy ones
@pytest.mark.parametrize("pages", TUTORIALS)
def test_a_tutorial_runs_on_the_real_model(pages: str, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cache = {key: value for key, value in os.environ.items() if key != "SHEARS_CACHE"}
    subprocess.run(["bash", "-ec", script(pages)], cwd=tmp_path, env={**cache, "PATH": path}, check=True)
    if pages.endswith("your-own-data.md"):
        assert "paired differences" in (tmp_path / "runs" / "mine" / "report.html").read_text().lower()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_pages_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if link.startswith("https://"):
            continue
        target = (page.parent / link).resolve()
        assert target.exists(), link
        assert target.is_relative_to(ROOT / "docs"), f"the site has no page for {link}: name the file without a link"


def test_security_names_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {5}
    named = [re.findall(r"`(test_\w+)`", row[-1]) for row in rows[2:]]
    assert all(named), "every input has a test"
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert {name for names in named for name in names} <= defined


def test_the_site_names_pages_that_exist() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = re.findall(r"[\w/-]+\.md", str(site["nav"]))
    assert named
    assert all((ROOT / "docs" / name).is_file() for name in named)
    assert site["strict"] is True


def code_of(page: str) -> tuple[list[str], list[str]]:
    """Return the lines of a page's code blocks, continued ones joined, and its code spans."""
    text = page.replace("\\\n", " ")
    lines = [line for match in FENCE.finditer(text) for line in match["text"].splitlines()]
    lines += INDENTED.findall(FENCE.sub("", text))
    return lines, [" ".join(span.split()) for span in SPAN.findall(outside_blocks(text))]


def outside_blocks(page: str) -> str:
    """Return a page without its code blocks."""
    return INDENTED.sub("", FENCE.sub("", page))


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_no_command_is_wrapped_as_prose(page: Path) -> None:
    """A formatter that takes a code block for a paragraph leaves options in it."""
    prose = SPAN.sub("", outside_blocks(page.read_text()))
    assert re.findall(r"(?<!\S)--[a-z][\w-]*", prose) == []


def shears_commands(page: str) -> Iterator[list[str]]:
    """Yield the words after `shears` of each command in code blocks and code spans, with `...` and NAMES."""
    lines, spans = code_of(page)
    for code in (*lines, *spans):
        for command in re.split(r"[|;]|&&", re.sub(r"(?:^|\s)#.*", "", code)):
            if found := re.search(r"(?<!from )(?<!import )(?<!install )(?<![\w./-])shears +(\S.*)", command):
                yield found[1].split()


def test_commands_are_found_in_blocks_and_spans() -> None:
    page = (
        "Shears and `shears run A --dry-run`,\nor `shears\nserve` it: shears no.\n\n"
        "    shears init a   # --not\n    echo x | shears chat b --c | shears d; torchrun --n 8 -m shears train \\\n"
        "      --shard\n    from shears import a\n\n```sh\nshears --threads 1 run\n```\n"
    )
    assert [" ".join(words) for words in shears_commands(page)] == [
        "--threads 1 run", "fetch a", "chat b --c", "d", "train --shard", "run A --dry-run", "serve",
    ]  # fmt: skip


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_pages_name_verbs_and_flags_that_exist(page: Path) -> None:
    group = typer.main.get_command(application())
    commands = {"": group, **group.commands}  # type: ignore[attr-defined]  # a click group
    flags = {verb: {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
             for verb, command in commands.items()}  # fmt: skip
    text = page.read_text()
    short = [words for words in map(str.split, code_of(text)[1]) if words and words[0] in flags]  # `search --test FILE`
    for words in (*shears_commands(text), *short):
        verb = next((word for word in words if re.fullmatch("[a-z]+", word)), "")
        assert verb in flags, words
        start = words.index(verb) if verb else len(words)
        for owner, its in (("", words[:start]), (verb, words[start:])):
            named = set(re.findall(r"(?<![^\s\[(])--[a-z][a-z-]*", " ".join(its)))
            assert named <= flags[owner], (owner, words)


def test_every_function_of_the_reference_exists() -> None:
    from importlib import import_module

    for path in re.findall(
        r"^::: ([\w.]+)$", (ROOT / "docs" / "reference" / "python.md").read_text(), flags=re.MULTILINE
    ):
        module, _, name = path.rpartition(".")
        assert getattr(import_module(module), name) is not None
