"""What training and search are fed: nothing that the model has no positions for."""

import json
from pathlib import Path

import pytest

from shears.adapt.train import train
from shears.searching.stage import search
from tests.adapt.training import SETTINGS
from tests.tiny import LONGEST, save_tiny


@pytest.mark.parametrize(("name", "groups"), [("gpt2", ("c_attn",)), ("opt", ("q_proj",))])
def test_examples_longer_than_the_model_has_positions_are_left_out(
    name: str, groups: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = [*range(20, 40), LONGEST + 9]
    rows = [{"prompt": "x" * (length - 5), "completion": " 1 2"} for length in lengths]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SETTINGS, "max_steps": 2, "groups": groups, "batch_size": len(rows) - 1}
    adapter = train(save_tiny(tmp_path / "base", name), tmp_path / "adapter", data=str(data), **settings)
    told = f"left out 1 of {len(rows)} examples: 1 longer than {LONGEST} tokens"
    assert told in caplog.text
    caplog.clear()
    search(adapter, tmp_path / "found", data=str(data), strategy="heuristic", device="cpu")
    assert told in caplog.text
