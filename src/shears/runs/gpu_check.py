"""`shears inspect --gpu-check`: the main verbs on GPU and CPU, on a random Llama of 50 M weights.

The CPU computes in fp32 and makes what later verbs read, so that a wrong verb is one wrong row.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import shears
from shears.data.rows import arithmetic_rows
from shears.errors import InputError, first_line
from shears.records.artifacts import RESULT, TRAINING_LOG, __version__, read_json, read_rows
from shears.records.timing import versions
from shears.runs.plan import quietly
from shears.runtime.loading import load

SIZES = {
    "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10,
    "num_key_value_heads": 5, "initializer_range": 0.05,
}  # fmt: skip
TOLERANCES = {"fp32": 3e-2, "bf16": 1e-1}
"""Largest relative differences to fp32 on the CPU; a moved zero changes later blocks' inputs."""
END = "<|end|>"
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "sparsify": {"method": "wanda", "num_samples": 40, "sequence_length": 64},
    "train": {"data": "arithmetic:train", "ranks": (8, 4), "max_steps": 2, "batch_size": 4, "warmup_steps": 1},
    "search": {"data": "arithmetic:validation", "limit": 16, "strategy": "hill-climbing", "max_evaluations": 3},
    "evaluate": {"task": "perplexity", "sequence_length": 128, "limit": 8},
}
Verb = Callable[["Inputs", str, str], Tensor]


class Inputs:
    """A random model and a text in a folder, and what the CPU makes of them."""

    def __init__(self, folder: Path, sizes: Mapping[str, Any]) -> None:
        self.folder = folder
        self.made = 0
        self.base, self.text = folder / "base", str(folder / "text.txt")
        letters = {char: n for n, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        core = Tokenizer(models.BPE(vocab=letters, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        config = AutoConfig.for_model("llama", vocab_size=len(letters) + 1, eos_token_id=len(letters), **sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            network.save_pretrained(self.base)
        PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END).save_pretrained(self.base)
        Path(self.text).write_text("\n".join(row["prompt"] for row in arithmetic_rows("train")[:100]))
        self.sparse = self.adapter = self.base

    def new(self) -> Path:
        self.made += 1
        return self.folder / f"made-{self.made}"

    def pruned(self, device: str, precision: str) -> Path:
        options = {**SETTINGS["sparsify"], "calibration": self.text}
        return shears.sparsify(str(self.base), self.new(), device=device, precision=precision, **options)

    def trained(self, device: str, precision: str) -> Path:
        return shears.train(self.sparse, self.new(), device=device, precision=precision, **SETTINGS["train"])


def weights(folder: Path) -> Tensor:
    files = sorted(folder.rglob("*.safetensors"))
    return torch.cat([each.float().flatten() for file in files for each in load_file(file).values()])


def trained(inputs: Inputs, device: str, precision: str) -> Tensor:
    """Return the losses of the steps: Adam makes large steps of gradients that are rounding."""
    return torch.tensor([row["loss"] for row in read_rows(inputs.trained(device, precision) / TRAINING_LOG)])


def searched(inputs: Inputs, device: str, precision: str) -> Tensor:
    found = shears.search(inputs.adapter, inputs.new(), device=device, precision=precision, **SETTINGS["search"])
    return torch.tensor([each["metrics"]["loss"] for each in read_json(found / RESULT)["evaluations"][:1]])


def evaluated(inputs: Inputs, device: str, precision: str) -> Tensor:
    options = {**SETTINGS["evaluate"], "adapter": str(inputs.adapter), "data": inputs.text}
    return torch.tensor([shears.evaluate(inputs.sparse, device=device, precision=precision, **options).value])


def exported(form: str) -> Verb:
    return lambda inputs, device, _: weights(
        shears.export_adapter(str(inputs.adapter), inputs.new(), format=form, device=device)
    )


def generated(inputs: Inputs, device: str, precision: str) -> Tensor:
    """Return whether a text was generated: a random model's likeliest words are nearly equal."""
    engine = load(inputs.sparse, inputs.adapter, device=device, dtype=precision)
    return torch.tensor([float(len(engine.generate("1+1", max_new_tokens=16).text) > 0)])


VERBS: Mapping[str, Verb] = {
    "sparsify": lambda inputs, device, precision: weights(inputs.pruned(device, precision)),
    "train": trained,
    "search": searched,
    "export peft": exported("peft"),
    "export merged": exported("merged"),
    "export package": exported("package"),
    "evaluate": evaluated,
    "generate": generated,
}


def gpu_check(**sizes: Any) -> dict[str, Any]:
    """Return each verb's result on the GPU and how far it is from the CPU's; takes minutes.

    Keywords change the sizes of the model. InputError without a GPU.
    """
    if not torch.cuda.is_available():
        raise InputError("--gpu-check needs a CUDA GPU, and torch finds none; install torch for your CUDA version")
    with quietly(), TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder), {**SIZES, **sizes})
        inputs.sparse = inputs.pruned("cpu", "fp32")
        inputs.adapter = inputs.trained("cpu", "fp32")
        rows = []
        for name, verb in VERBS.items():
            expected = verb(inputs, "cpu", "fp32")
            formats = ["fp32"] if name.startswith("export") else TOLERANCES
            rows += [{"verb": name, "format": each, **row(verb, inputs, each, expected)} for each in formats]
    gpu = {"gpu": torch.cuda.get_device_name(), "capability": ".".join(map(str, torch.cuda.get_device_capability()))}
    about = {"shears": __version__, **versions(), "cuda": str(torch.version.cuda)}
    return {**gpu, "memory": torch.cuda.mem_get_info()[1], "versions": about, "verbs": rows}


def row(verb: Verb, inputs: Inputs, precision: str, expected: Tensor) -> dict[str, Any]:
    """Return a verb's result on the GPU (ok, differs, or the line of its error) and its figures."""
    started = time.perf_counter()
    difference = None
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found = verb(inputs, "cuda", precision)
        difference = float((found - expected).norm() / expected.norm())
        result = "ok" if difference <= TOLERANCES[precision] else "differs"
    except Exception as error:  # noqa: BLE001  every verb is tried
        result = f"{type(error).__name__}: {first_line(error)}"
    figures = {"difference": difference, "s": round(time.perf_counter() - started, 1)}
    return {"result": result, **figures, "memory": torch.cuda.max_memory_allocated()}
