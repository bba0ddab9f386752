"""The notebook for Colab is a valid one, and its cells run: a tiny model in place of the embedded one, two steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shears
from tests.tiny import save_tiny

NOTEBOOK = json.loads((Path(__file__).parents[2] / "examples" / "colab.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALLER = {
    "smollm2-135m": "base --calibration tickets.jsonl",
    "--max-steps 20": "--max-steps 2",
    "--num-samples 16": "--num-samples 2",
}


def test_the_notebook_has_the_form_of_nbformat_4_5_and_no_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    keys = {"cell_type", "id", "metadata", "source"}
    for cell in NOTEBOOK["cells"]:
        more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == keys | more
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_cells_run_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    source = str(Path(shears.__file__).parents[1])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": source}
    install, *cells = CODE
    assert install.strip() == "!pip install -q git+https://github.com/shears-llm/shears"

    def shell(command: str) -> None:
        for given, smaller in SMALLER.items():
            command = command.replace(given, smaller)
        subprocess.run(command, shell=True, check=True, env=environment)

    names = {"shell": shell}
    for cell in cells:
        exec(re.sub(r"^( *)!(.*)$", r"\1shell(r'''\2''')", cell, flags=re.MULTILINE), names)
    printed = capfd.readouterr().out
    assert "no GPU here" in printed
    assert "sparse: " in printed
    assert "adapter: adapter of one rank" in printed
