"""A recipe with a section heal: the stage stands between sparsify and train, and the training is on its model."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.config import Recipe
from tests.healing.conftest import SETTINGS


def recipe(models: Path, output: Path, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"model": str(models / "dense"), "output": str(output), "sparsify": {"method": "magnitude"}, **sections}
    )


def test_a_run_heals_what_it_trains_on_and_skips_it_when_it_is_done(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    train = {"data": str(tmp_path / "rows.jsonl"), "max_steps": 1, "warmup_steps": 0, "ranks": [2], "device": "cpu"}
    whole = recipe(models, tmp_path / "run", heal={**SETTINGS, "data": str(models / "text.txt")}, train=train)
    plan = shears.plan(whole)
    assert [stage.name for stage in plan.stages] == ["sparsify", "heal", "train", "export"]
    assert plan.stages[1].work.startswith("7 steps, 448 tokens of ")
    shears.run(whole)
    healed, space = (
        json.loads((tmp_path / "run" / name).read_text())
        for name in ("healed/heal.json", "super_adapter/search_space.json")
    )
    assert healed["teacher"] == healed["model"] == str(models / "dense")
    assert space["base_fingerprint"] == healed["fingerprint"] != healed["base_fingerprint"]
    with caplog.at_level(logging.INFO, logger="shears"):
        shears.run(whole)
    assert "[2/4] heal: done before with this configuration, skipped" in caplog.text


def test_without_the_section_nothing_is_healed(models: Path, tmp_path: Path) -> None:
    assert [stage.name for stage in shears.plan(recipe(models, tmp_path / "run")).stages] == ["sparsify"]
