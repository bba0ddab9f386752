"""The examples of training and search: none longer than the model's positions, padded as the model allows."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from shears.adapt.train import train
from shears.searching.stage import search
from tests.tiny import LONGEST, save_tiny, tiny_tokenizer
from tests.training.small_training import SETTINGS, log, pad_batches


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
    message = f"left out 1 of {len(rows)} examples: 1 longer than {LONGEST} tokens"
    assert message in caplog.text
    caplog.clear()
    search(adapter, tmp_path / "search", data=str(data), strategy="heuristic", device="cpu")
    assert message in caplog.text


@pytest.mark.parametrize(("name", "groups"), [("rwkv", ("key+value",)), ("recurrent_gemma", ("up_proj",))])
def test_a_model_that_reads_padding_learns_the_same_in_a_batch_as_row_by_row(
    name: str, groups: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [{"prompt": "x" * length, "completion": f" {length}"} for length in range(3, 19)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SETTINGS, "max_steps": 3, "groups": groups, "data": str(data), "dropout": 0.0}
    base = save_tiny(tmp_path / "base", name)
    together = train(base, tmp_path / "together", **settings)
    alone = train(base, tmp_path / "alone", micro_batch_size=1, **settings)
    losses = [[line["loss"] for line in log(folder)] for folder in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_a_tokenizer_without_an_end_and_a_padding_token_will_do(
    base: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    if not packing:
        pad_batches(monkeypatch)
    wanted = train(base, tmp_path / "wanted", data=data, **SETTINGS)
    own = shutil.copytree(base, tmp_path / "own")
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer).save_pretrained(own)
    unmarked = train(own, tmp_path / "unmarked", data=data, **SETTINGS)
    for with_end, without in zip(log(wanted), log(unmarked), strict=True):
        assert without["tokens"] == with_end["tokens"] - min(4, 18 - (without["step"] - 1) % 5 * 4)
