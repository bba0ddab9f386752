"""The page on training loops of one's own: its Python trains, and what it saves is searched, exported and loaded."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import shears
from shears import RankConfig
from shears.cli import main
from tests.tiny import save_tiny

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-loop.md"
IDS = torch.arange(40, 60)[None]
ROWS = [{"prompt": f"{a}+{a}=", "completion": f" {2 * a}"} for a in range(20)]
PREFERENCES = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no"} for row in ROWS[:6]]
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory'"),  # Trainer's default, of which torch warns without a GPU
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),  # TRL's default, old name
]
RANKS = {"32, 24, 16": "6, 4, 2", "r=32, lora_alpha=64": "r=6, lora_alpha=12"}  # a tiny model has few inputs


def parts(language: str) -> list[str]:
    """The code blocks of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has before the page: a sparse model and three files, in the working folder."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "sparse"))
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            parameter.data[torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    model.save_pretrained(tmp_path / "sparse")
    for name, rows in (("train", ROWS), ("validation", ROWS[:4]), ("preferences", PREFERENCES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(loop: int) -> dict[str, Any]:
    """Run what stands before the training, and one of the page's loops; return its names."""
    setup, *loops = parts("python")
    for ours, tiny in RANKS.items():
        assert ours in setup
        setup = setup.replace(ours, tiny)
    names: dict[str, Any] = {}
    exec(setup, names)
    names["drawn"] = []
    activate = names["elastic"].activate

    def recorded(ranks: RankConfig) -> RankConfig:
        names["drawn"].append(ranks)
        return activate(ranks)  # type: ignore[no-any-return]

    names["elastic"].activate = recorded
    exec(loops[loop].replace('report_to="none"', 'report_to="none", use_cpu=True, bf16=False'), names)
    return names


def run_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page's commands."""
    for command in "".join(parts("sh")).splitlines():
        fewer = ["--max-evaluations", "4"] if " search " in command else []
        monkeypatch.setattr(sys, "argv", [*command.split(), *fewer])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, command


def logits(model: torch.nn.Module) -> Tensor:
    """Logits of a fixed text."""
    model.eval()
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def base() -> Any:
    """The sparse model, loaded anew."""
    return AutoModelForCausalLM.from_pretrained("sparse")


def check(names: dict[str, Any]) -> None:
    """Several ranks were trained, the exported adapter is the searched part of the trained one, in stock PEFT too."""
    assert len(set(names["drawn"])) > 1
    assert shears.inspect("super_adapter")["base_fingerprint"] == shears.inspect("sparse")["fingerprint"]
    assert shears.inspect("sub_adapter")["super_adapter_fingerprint"] == shears.inspect("super_adapter")["fingerprint"]
    record = json.loads(Path("super_adapter/search_space.json").read_text())
    assert record["template"] == "question"
    chosen = json.loads(Path("search/result.json").read_text())["chosen"]["ranks"]
    del names["elastic"].activate  # the recorder
    names["elastic"].activate(RankConfig(chosen))
    trained = logits(names["model"])
    stock = logits(PeftModel.from_pretrained(base(), "sub_adapter"))
    torch.testing.assert_close(stock, trained)
    assert (trained - logits(base())).abs().max() > 1e-4


@pytest.mark.parametrize("loop", [0, 1], ids=["trainer", "no trainer"])
def test_an_adapter_of_your_own_trainer_is_searched_and_exported(
    loop: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run_page(loop)
    run_commands(monkeypatch)
    check(names)


def test_search_and_export_take_what_sft_trainer_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="the extra trl is not installed")
    names = run_page(2)
    run_commands(monkeypatch)
    check(names)


def test_dpo_trainer_compares_with_the_base_and_trains_the_elastic_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl", reason="the extra trl is not installed")
    names = run_page(3)
    run_commands(monkeypatch)
    check(names)
    model = names["model"]
    assert set(model.peft_config) == {"default", "ref"}
    model.set_adapter("ref")
    torch.testing.assert_close(logits(model), logits(base()), rtol=0, atol=0)
    saved = Path("super_adapter/adapter_model.safetensors").stat().st_size
    assert saved < 1.2 * sum(4 * p.numel() for name, p in model.named_parameters() if ".default." in name) + 8192
