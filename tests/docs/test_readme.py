"""The README is one page, its Python runs, its demo is the recorded one; the maps name files that exist."""

import json
import re
from pathlib import Path

import pytest
from benchmarks.pictures import draw
from peft import PeftModel
from transformers import AutoModelForCausalLM

import shears
from shears.serving.protocol import ChatRequest
from tests.docs.blocks import blocks_of, shears_calls
from tests.end_to_end.recipe import write_recipe
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ARTIFACTS = {"sparse", "super_adapter", "search", "sub_adapter", "merged", "package", "evaluation"}  # folders of a run
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path)
    save_tiny(tmp_path / "base", max_position_embeddings=1024)
    (tmp_path / "text.txt").write_text("Some text to calibrate on, at least sixteen thousand tokens. " * 300)
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 1
    assert len(BLOCKS[0].splitlines()) <= 10
    exec(BLOCKS[0].replace('"smollm2-135m"', '"base"'), {})
    assert shears.inspect("chosen")["base_fingerprint"] == shears.inspect("sparse")["fingerprint"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("sparse"), "chosen")
    assert model.peft_config["default"].r == 32


def test_the_server_takes_the_request_of_the_readme() -> None:
    (body,) = re.findall(r"-d '(.*?)'\n", README, flags=re.DOTALL)
    served = re.search(r"shears serve (\S+)", README)
    assert served
    assert ChatRequest.model_validate_json(body).model == served[1]


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 1300
    assert max(line.count(" | ") + 1 for line in README.splitlines() if line.startswith("|")) <= 6


def test_the_readme_names_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert len(links) >= 10
    files = [link for link in links if not link.startswith("https://")]
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_picture_and_the_tutorial_show_the_recorded_demo() -> None:
    figures = json.loads((ROOT / "docs/assets/demo.json").read_text())
    assert (ROOT / "docs/assets/demo.svg").read_text() == draw(figures)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    names = [row["name"] for row in figures["models"]]
    assert names == ["dense", "sparse", "dense-lora", "sparse + sub-adapter"]
    for row in figures["models"]:
        low, high = row["ci95"]
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        cells = [row["name"], f"{100 * row['value']:.1f} %", interval, f"{row['sparsity']:.0%}"]
        assert f"| {' | '.join(cells)} |" in tutorial
    assert "(docs/assets/demo.svg)" in README


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_and_folder_that_a_map_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    source = ROOT / "src" / "shears"
    files = {
        path.name
        for path in [
            *source.rglob("*.py"),
            *ROOT.glob("tests/*.py"),
            *ROOT.glob("docs/*.py"),
            *ROOT.glob("examples/*.py"),
        ]
    }
    roots = (source, ROOT / "tests", ROOT / "docs", ROOT / "examples")
    folders = {path.name for root in roots for path in [root, *root.rglob("*")] if path.is_dir()}
    named = set(re.findall(r"\b(\w+\.py)\b", text))
    assert named
    assert named <= files
    inside = set(re.findall(r"\b(\w+)/(?=[ ,)`.]|\n)", text)) - ARTIFACTS
    assert inside
    assert inside <= folders


def test_the_map_is_short() -> None:
    lines = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    assert len(lines) <= 150


def test_every_verb_has_an_example_in_the_readme_or_the_docs() -> None:
    from shears.cli import application

    commands = application().registered_commands
    names = [command.name or command.callback.__name__ for command in commands if command.callback]
    assert len(names) >= 10
    pages = [README, *(page.read_text() for page in (ROOT / "docs").rglob("*.md"))]
    shown = {word for page in pages for block in blocks_of(page) for words in shears_calls(block) for word in words[:1]}
    assert [name for name in names if name not in shown] == []
