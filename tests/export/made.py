"""Half-sparse tiny bases and random super-adapters on them, as sparsify and train write them, without training."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from shears.adapt.groups import build_space, target_modules
from shears.adapt.space import RankConfig
from shears.adapt.super_adapter import load_super_adapter
from shears.models.blocks import linears
from shears.models.load import load_model
from shears.records.artifacts import SEARCH_SPACE, weights_fingerprint, write_json
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

IDS = torch.arange(24).view(2, 12)
GROUPS = {
    "llama": ("q_proj+k_proj+v_proj", "up_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_fc+mlp.c_proj"),
    "zamba2": ("q_proj+k_proj",),
}  # fmt: skip
ALPHA, RANKS = 9, (6, 4, 3, 1)


def half_sparse(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a tiny model whose block linears have random weights, about half of them zero."""
    model, generator = tiny_model(name, **changes), torch.Generator().manual_seed(5)
    for linear in linears(model.base_model).values():
        weight = linear.get_parameter("weight")
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
        weight.data *= torch.rand(weight.shape, generator=generator) < 0.5
    nn.Module.to(model, dtype)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def half_sparse_with_merge(folder: Path, name: str = "llama", **changes: Any) -> Path:
    """Save a half-sparse tiny model whose tokenizer has a merge, which llama.cpp needs."""
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), VOCABULARY)
    half_sparse(folder, name, **{"vocab_size": VOCABULARY + 1, **ends, **changes})
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["!!"] = VOCABULARY - 1
    content["model"]["merges"] = [["!", "!"]]
    content["added_tokens"][0]["id"] = VOCABULARY
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def super_adapter(folder: Path, base: Path, sparse_adapter: bool = False, data: Path | None = None) -> Path:
    """Save a random super-adapter of ranks 6, 4, 3, 1 with its record."""
    model = load_model(base, device="cpu")
    name = model.config.model_type if model.config.model_type in GROUPS else "llama"
    space = build_space(model, GROUPS[name], RANKS)
    lora = LoraConfig(
        r=RANKS[0], lora_alpha=ALPHA, target_modules=target_modules(model, space), fan_in_fan_out=name == "gpt2",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    peft_model, generator = get_peft_model(model, lora), torch.Generator().manual_seed(6)
    for parameter_name, parameter in peft_model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    peft_model.save_pretrained(str(folder))
    groups = {name: {"ranks": list(RANKS), "modules": list(space.modules[name])} for name in space.ranks}
    record = {
        "config": {"data": str(data) if data else None},
        "base": str(base),
        "base_fingerprint": weights_fingerprint(base),
        "fingerprint": weights_fingerprint(folder),
        "alpha": float(ALPHA),
        "sparse_adapter": sparse_adapter,
        "max_rank": RANKS[0],
        "template": "alpaca",
        "groups": groups,
    }
    write_json(folder / SEARCH_SPACE, record)
    return folder


def mixed_ranks(path: Path, adapter: Path) -> Path:
    """Write ranks in which neighbouring groups differ."""
    groups = json.loads((adapter / SEARCH_SPACE).read_text())["groups"]
    path.write_text(json.dumps({group: RANKS[index % 4] for index, group in enumerate(groups)}))
    return path


def stock(folder: Path) -> PreTrainedModel:
    """The model through nothing but transformers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=IDS).logits
    return result


def activated(adapter: Path, ranks: str | Path = "heuristic") -> Tensor:
    """Logits of the super-adapter on its base, un-merged, with ranks by name or from a file."""
    loaded = load_super_adapter(adapter, device="cpu")
    space = loaded.elastic.space
    config = RankConfig(json.loads(ranks.read_text())) if isinstance(ranks, Path) else getattr(space, ranks)()
    loaded.elastic.activate(config)
    return logits(loaded.model)


def weights(folder: Path) -> dict[str, Tensor]:
    """Weights of all block linears (outputs x inputs or as they are stored), by name."""
    return {name: linear.get_parameter("weight").data for name, linear in linears(stock(folder).base_model).items()}
