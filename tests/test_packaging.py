"""What pip installs: one name, messages that install what exists, files that describe the project alike.

.ci/wheel builds the wheel and runs it without the source tree.
"""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from shears import __version__
from shears.errors import DISTRIBUTION, install_hint

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "src").rglob("*.yaml"))]


def test_the_name_that_messages_install_is_that_of_the_distribution() -> None:
    assert PROJECT["project"]["name"] == DISTRIBUTION
    assert install_hint("serve") == "pip install 'shears-llm[serve]'"


def test_only_the_hint_names_an_install_in_the_source() -> None:
    naming = re.compile(r"pip install\W+shears|shears(-llm)?\[")
    named = [path.name for path in SOURCES if naming.search(path.read_text())]
    assert named == []
    assert naming.search("(pip install 'shears[harness]')")
    assert naming.search("use shears-llm[serve]")


def test_every_extra_that_a_message_names_exists() -> None:
    calls = [
        node.args[0]
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "install_hint"
    ]
    constant = {call.value for call in calls if isinstance(call, ast.Constant)}
    assert {"serve", "harness", "postgresql"} <= constant
    assert len(constant) == len({ast.dump(call) for call in calls})
    assert constant <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_install_our_distribution(page: Path) -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    for name, extra in re.findall(r"pip install '?([\w.-]+)\[(\w+)\]", page.read_text()):
        assert name in (DISTRIBUTION, "."), name
        assert extra in extras, extra
    assert not re.search(r"pip install '?shears(?!-llm)\b", page.read_text())


def test_the_citation_has_the_version_and_the_home_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Homepage"]


def test_the_workflows_run_the_checks_and_build_and_try_every_wheel() -> None:
    check = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]
    assert ".ci/run" in [step.get("run") for step in check["steps"]]
    jobs = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())["jobs"]
    systems = jobs["wheels"]["strategy"]["matrix"]["os"]
    assert [system.split("-")[0] for system in systems] == ["ubuntu", "ubuntu", "macos", "windows"]
    assert jobs["demo"]["strategy"]["matrix"]["os"] == systems
    assert jobs["demo"]["steps"][-1]["run"] == "shears run quickstart.yaml"


def test_the_recipes_at_the_root_are_those_of_the_package() -> None:
    assert (ROOT / "recipes" / "quickstart.yaml").samefile(ROOT / "src" / "shears" / "recipes" / "quickstart.yaml")
