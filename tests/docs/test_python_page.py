"""The Python of the reference runs, from top to bottom, on a tiny model."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

import shears
from shears.adapt.groups import add_lora, build_space
from shears.config import TrainConfig
from tests.end_to_end.recipe import write_recipe
from tests.tiny import save_tiny, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"


def test_the_python_of_the_reference_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path)
    save_tiny(tmp_path / "base", max_position_embeddings=1024)
    (tmp_path / "text.txt").write_text("Some text to calibrate on, at least sixteen thousand tokens. " * 300)
    monkeypatch.chdir(tmp_path)
    stages, pieces, stock = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(stages.replace('"smollm2-135m"', '"base"').replace("hill-climbing", "heuristic"), names)
    assert shears.inspect("chosen")["base_fingerprint"] == shears.inspect("sparse")["fingerprint"]
    names |= _own_model_and_trainer(tmp_path)
    exec(pieces, names)
    assert names["elastic"].active != names["space"].heuristic()
    exec(stock, names)
    assert names["model"].peft_config["default"].r == 32


def _own_model_and_trainer(folder: Path) -> dict[str, Any]:
    """Return what a user of the second block has: a model, a PEFT model on it, a Trainer."""
    model = tiny_model()
    space = build_space(model, ("q_proj+k_proj+v_proj", "up_proj"), (32, 24, 16))
    peft_model = add_lora(model, space, TrainConfig(data="-", alpha=64))
    trainer = Trainer(peft_model, TrainingArguments(str(folder / "trainer"), report_to="none", use_cpu=True))
    return {"model": tiny_model(), "peft_model": peft_model, "trainer": trainer}
