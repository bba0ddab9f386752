"""`shears init` gives a newcomer a recipe that loads, and touches no file that exists."""

import re
from pathlib import Path

import pytest

from shears.cli.init import init, sentence, shipped_recipes
from shears.config.resolve import load_recipe
from shears.errors import InputError


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_name_the_quickstart_is_written_and_the_next_command_told(capfd: pytest.CaptureFixture[str]) -> None:
    init()
    assert [path.name for path in Path().iterdir()] == ["quickstart.yaml"]
    assert load_recipe("quickstart.yaml").model == "smollm2-135m"
    lines = capfd.readouterr().out.splitlines()
    assert "next: shears run quickstart.yaml" in lines
    assert any(line.startswith("  llama-7b-math: ") for line in lines)


def test_several_recipes_are_written_as_shipped() -> None:
    init(["llama-7b-math", "mpt-7b-gsm8k", "llama-7b-math"])
    assert sorted(path.stem for path in Path().iterdir()) == ["llama-7b-math", "mpt-7b-gsm8k"]
    for path in Path().iterdir():
        assert path.read_text() == shipped_recipes()[path.stem].read_text()


def test_a_list_has_every_recipe_and_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    init(only_list=True)
    output = capfd.readouterr().out
    assert not [*Path().iterdir()]
    assert all(f"  {name}: {sentence(path)}" in output for name, path in shipped_recipes().items())


def test_no_file_is_overwritten_and_none_written_beside_it() -> None:
    Path("quickstart.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"quickstart\.yaml must not exist yet"):
        init(["mpt-7b-gsm8k", "quickstart"])
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]


def test_a_name_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(InputError, match=r"one of quickstart, .*qwen2\.5-coder-1\.5b-gsm8k, got 'quikstart'"):
        init(["quickstart", "quikstart"])
    assert not [*Path().iterdir()]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_says_in_one_line_what_it_is_for_and_names_files_that_init_writes(name: str) -> None:
    path = shipped_recipes()[name]
    assert re.fullmatch(r"[A-Z].{20,110}\.", sentence(path))
    named = re.findall(r"[\w/.-]+\.yaml", path.read_text())
    assert f"{name}.yaml" in named
    assert set(named) <= {f"{other}.yaml" for other in shipped_recipes()}
