"""What the benchmarks measure with is right: the reference prunes as the paper says, peaks are seen, files open."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from benchmarks.memory import peak_memory
from benchmarks.random_llama import BLOCKS_PER_FILE, PRESETS, random_llama, random_sequences
from benchmarks.reference_wanda import InputStatistic, reference_wanda
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks import memory
from shears.data.calibration import calibration_batches
from tests.oracles import wanda
from tests.tiny import VOCABULARY, tiny_model

MB = 1_000_000
ROOT = Path(__file__).parents[2]


def _llama() -> LlamaForCausalLM:
    model = tiny_model("llama", num_hidden_layers=3)
    assert isinstance(model, LlamaForCausalLM)
    return model


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7])
def test_the_reference_prunes_what_the_paper_says(sparsity: float) -> None:
    tokens = torch.randint(0, VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(1))
    expected = wanda.prune(tiny_model("llama", num_hidden_layers=3), list(tokens), sparsity)
    model = _llama()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    masks = reference_wanda(model, [row.unsqueeze(0) for row in tokens], sparsity)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        scores, pruned = expected[name]
        threshold = scores.masked_fill(~pruned, 0.0).amax(1, keepdim=True)
        ties = (scores - threshold).abs() <= 1e-6 * threshold  # equal to float32 rounding
        assert torch.equal(mask | ties, pruned | ties), name
        assert torch.equal(mask.sum(1), pruned.sum(1)), name
    for name, weight in model.state_dict().items():
        linear = name.removesuffix(".weight")
        assert torch.equal(weight, before[name].masked_fill(masks[linear], 0.0) if linear in masks else before[name])


def test_the_running_statistic_is_the_mean_square_norm_over_samples() -> None:
    linear, samples = torch.nn.Linear(6, 2), torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))
    statistic = InputStatistic(linear)
    for part in samples.split((1, 3, 1)):
        statistic.add(part)
    torch.testing.assert_close(statistic.mean_square, samples.square().sum((0, 1)) / 5)


@pytest.mark.parametrize("source", ["VmHWM", "VmRSS, sampled"])
def test_a_peak_is_seen_although_its_memory_is_free_again(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(size: int) -> str:
        return f"held = bytearray({size}); held[::4096] = bytes(len(held[::4096])); time.sleep(0.2); del held"

    if source != "VmHWM":  # where the kernel's peak cannot be reset
        unwritable = "import pathlib; memory.CLEAR = pathlib.Path('/nowhere/clear_refs')"
        monkeypatch.setattr(memory, "CHILD", f"from benchmarks import memory; {unwritable}; memory._child()")
    usage = peak_memory("import time\n" + held(300 * MB), held(100 * MB))
    assert usage.source == source
    assert 99 * MB < usage.peak < 110 * MB
    assert 0.1 < usage.seconds < 60
    assert 0 < usage.baseline < 100 * MB


def test_imports_and_prints_are_not_part_of_the_work_and_failures_say_why() -> None:
    assert peak_memory("import json", "print('noise')").peak < 5 * MB
    assert peak_memory("import torch", "torch.ones(10)").peak < 20 * MB
    with pytest.raises(RuntimeError, match="must exit with 0, got 1: (.|\n)*ZeroDivisionError"):
        peak_memory("zero = 0", "1 / zero")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_random_llama_is_an_ordinary_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = random_llama(tmp_path / "model", "tiny", dtype=dtype)
    model, info = cast("Any", AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == dtype
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().float()
    assert 0.018 < weight.std() < 0.022
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert torch.isfinite(model(torch.arange(8).unsqueeze(0)).logits).all()
    assert len(list(folder.glob("*.safetensors"))) == 2 + -(-3 // BLOCKS_PER_FILE)


def test_a_random_llama_is_the_same_for_a_seed_and_no_two_weights_are_alike(tmp_path: Path) -> None:
    first, again, other = (random_llama(tmp_path / name, "tiny", seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    names = sorted(path.name for path in first.iterdir())
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    tensors = {name: tensor for path in first.glob("*.safetensors") for name, tensor in load_file(path).items()}
    others = {name: tensor for path in other.glob("*.safetensors") for name, tensor in load_file(path).items()}
    firsts = [float(tensor.flatten()[0]) for tensor in tensors.values() if tensor.ndim == 2]
    assert len(firsts) == len(set(firsts)) == 3 * 7 + 2
    assert not torch.equal(*(each["model.embed_tokens.weight"] for each in (tensors, others)))


def test_the_large_preset_has_about_1_1_billion_parameters() -> None:
    from transformers import LlamaConfig

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**PRESETS["1b"], tie_word_embeddings=False))
    assert 1.09e9 < sum(parameter.numel() for parameter in model.parameters()) < 1.11e9


def test_random_sequences_calibrate_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    path = random_sequences(tmp_path / "ids.jsonl", "tiny", num_sequences=5, length=16)
    calibration = calibration_batches(str(path), None, 5, 16, 2, 0)
    assert [tuple(batch.shape) for batch in calibration.batches] == [(2, 16), (2, 16), (1, 16)]
    assert max(int(batch.max()) for batch in calibration.batches) < PRESETS["tiny"]["vocab_size"]
    again = random_sequences(tmp_path / "again.jsonl", "tiny", num_sequences=5, length=16)
    assert again.read_bytes() == path.read_bytes()


def test_every_benchmark_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.yaml")]
    named = {name for page in pages for name in re.findall(r"benchmarks[./](\w+)", page.read_text())}
    assert len(named) > 15
    assert sorted(named - {path.stem for path in (ROOT / "benchmarks").iterdir()}) == []
