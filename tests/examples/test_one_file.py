"""The method in one file makes what the library makes: masks, adapter, merged weights."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shears import sparsify_model, train
from shears.config import SparsifyConfig
from shears.export.peft import export_adapter
from tests.searching.sums import rows
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

FILE = Path(__file__).parents[2] / "examples" / "shears_in_one_file.py"
RANKS = (6, 4, 2)
STEPS = 6
PREFIX = "base_model.model.model.layers"


@pytest.fixture(scope="module")
def method() -> Any:
    spec = importlib.util.spec_from_file_location("shears_in_one_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 256, (2, 24), generator=generator) for _ in range(3)]


def test_it_reads_in_one_sitting_and_imports_torch_and_transformers_alone() -> None:
    text = FILE.read_text()
    assert len(text.splitlines()) <= 300
    imports = [line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import", "from"))]
    standard = {"argparse", "json", "random", "collections", "contextlib", "pathlib", "typing"}
    assert set(imports) - standard == {"torch", "transformers"}


@pytest.fixture(scope="module")
def folder(method: Any, batches: list[torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that the one file pruned, and rows to train on."""
    made = tmp_path_factory.mktemp("one")
    save_tiny(made / "sparse")
    model = tiny_model()
    method.prune(model, batches)
    model.save_pretrained(made / "sparse")
    rows(made / "rows.jsonl", 0)
    return made


def test_its_pruned_weights_are_the_librarys(folder: Path, batches: list[torch.Tensor]) -> None:
    expected = tiny_model()
    sparsify_model(expected, batches, SparsifyConfig(method="wanda", calibration="unused", precision="fp32"))
    pruned = AutoModelForCausalLM.from_pretrained(folder / "sparse")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(pruned.state_dict()[name], tensor), name
    assert (pruned.model.layers[0].mlp.up_proj.weight == 0).float().mean() == 0.5


@pytest.fixture(scope="module")
def super_adapter(folder: Path) -> Path:
    return train(
        folder / "sparse", folder / "adapter", data=str(folder / "rows.jsonl"), ranks=RANKS, alpha=12.0,
        sampling="uniform", sparse_adapter=True, max_steps=STEPS, batch_size=8, learning_rate=1e-2, warmup_steps=2,
        device="cpu", precision="fp32",
    )  # fmt: skip


def adapted(method: Any, folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder / "sparse")
    torch.manual_seed(0)
    return model, method.add_adapter(model, rank=RANKS[0], alpha=12.0)


def factors_of(model: Any) -> dict[str, torch.Tensor]:
    """The factors by PEFT's names."""
    return {
        f"{PREFIX}.{name.replace('lora_a', 'lora_A').replace('lora_b', 'lora_B')}": tensor.detach()
        for name, tensor in model.model.layers.named_parameters()
        if "lora_" in name
    }


def test_its_adapter_after_some_steps_is_the_librarys(method: Any, folder: Path, super_adapter: Path) -> None:
    model, adapter = adapted(method, folder)
    examples = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    batch = method.pad([method.encode(tiny_tokenizer(), row) for row in examples])  # a step takes all rows
    losses = list(method.train(model, adapter, [batch] * STEPS, ranks=RANKS, learning_rate=1e-2, warmup=2))
    log = [json.loads(line) for line in (super_adapter / "training_log.jsonl").read_text().splitlines()]
    expected = load_file(super_adapter / "adapter_model.safetensors")
    actual = factors_of(model)
    assert actual.keys() == expected.keys()
    # the library packs examples into rows instead of padding them, which rounds differently
    torch.testing.assert_close(torch.tensor(losses), torch.tensor([row["loss"] for row in log]), rtol=1e-5, atol=1e-6)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-4)  # AdamW divides by small gradients


def test_its_merged_weights_are_the_librarys_and_keep_every_zero(
    method: Any, folder: Path, super_adapter: Path
) -> None:
    model, adapter = adapted(method, folder)
    expected = load_file(super_adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, tensor in factors_of(model).items():
            tensor.copy_(expected[name])
    method.activate(adapter, method.heuristic(adapter, RANKS))
    zeros = method.sparsity_of(AutoModelForCausalLM.from_pretrained(folder / "sparse"))
    method.merge(model)
    merged = AutoModelForCausalLM.from_pretrained(
        export_adapter(super_adapter, folder / "merged", format="merged-sparse", device="cpu")
    )
    for name, tensor in merged.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert method.sparsity_of(model) == zeros == 0.5
