"""The tutorial's commands run from top to bottom; every page that a page names exists."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shears.cli import main
from tests.end_to_end.recipe import write_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
VERBS = "run report inspect generate data run run compare export generate push"  # that the tutorial calls
SMALLER = {"smollm2-135m": "base", "sequence_length: 256": "sequence_length: 64", "epochs: 8": "epochs: 1",
           "data mine/train.jsonl": "data mine/train.jsonl --model base",
           "me/sparse --dry-run": "me/sparse --base me/base --dry-run"}  # fmt: skip  # the tiny base is a folder


def script() -> str:
    """Return the commands of the tutorial as one script."""
    return "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL))


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


def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, in this process; the slow test below does it as a reader would."""
    recipe = write_recipe(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe.rename(tmp_path / "recipes" / "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    text = script()
    for real, tiny in SMALLER.items():
        text = text.replace(real, tiny)
    seen = []
    for command in commands(text):
        if not command.startswith("shears "):
            subprocess.run(["bash", "-ec", command], check=True)
            continue
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, command
        seen.append(command.split()[1])
    assert " ".join(seen) == VERBS


@pytest.mark.slow
@pytest.mark.timeout(2400)  # minutes on two free cores, many more on busy ones
def test_the_tutorial_runs_on_the_real_model(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cache = {key: value for key, value in os.environ.items() if key != "SHEARS_CACHE"}
    subprocess.run(["bash", "-ec", script()], cwd=tmp_path, env={**cache, "PATH": path}, check=True)
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()


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


def test_every_function_of_the_reference_exists() -> None:
    from importlib import import_module

    for path in re.findall(
        r"^::: ([\w.]+)$", (ROOT / "docs" / "reference" / "python.md").read_text(), flags=re.MULTILINE
    ):
        module, _, name = path.rpartition(".")
        assert getattr(import_module(module), name) is not None
