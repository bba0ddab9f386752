"""A package folder through the native decoder."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from shears import export_adapter
from shears.checkpoints.package_file import Package, read_package
from shears.records.paths import ADAPTER_CONFIG
from shears.runtime.native.model_source import scaling_of, source_of_package
from tests.runtime.native.decoders import PACKAGED, covered, expected, extension_is_missing, text, with_lora
from tests.tiny import tiny_tokenizer

if extension_is_missing():
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from shears.runtime.native.decoder import NativeBackend


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, Path]:
    """A model with an adapter, and the adapter's folder beside the model's."""
    folder = tmp_path_factory.mktemp("adapted")
    model = covered()
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    model.name_or_path = str(folder / "model")
    adapted = with_lora(model, ["q_proj", "up_proj", "down_proj"])
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "model")
    adapted.save_pretrained(folder / "adapter")
    return adapted, folder / "adapter"


# 8 bits move these small models' logits by up to 6 % of the largest; a missing update moves them by half of it
@pytest.mark.parametrize(("values", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05), ("int8", 0.1)])
def test_a_package_gives_the_logits_of_its_model_and_adapter(
    adapted: tuple[PeftModel, Path], tmp_path: Path, values: str, tolerance: float
) -> None:
    package = export_adapter(str(adapted[1]), tmp_path / "package", format="package", dtype=values)
    runtime, tokens = NativeBackend(source_of_package(read_package(package)), 1), text(100)
    want = expected(adapted[0], tokens)
    assert np.abs(runtime.logits(tokens) - want).max() < tolerance * np.abs(want).max()
    assert (runtime.max_length, runtime.max_sequences, runtime.describe()["values"]) == (256, 16, values)


@pytest.mark.parametrize("embeddings", ["keep", "int8", "int4"])
def test_int4_is_the_model_of_the_rounded_weights(
    adapted: tuple[PeftModel, Path], tmp_path: Path, embeddings: str
) -> None:
    package = export_adapter(
        str(adapted[1]), tmp_path / "package", format="package", dtype="int4", embedding_dtype=embeddings
    )
    tokens, parts = text(100), read_package(package)
    want = expected(with_weights(adapted[0], parts), tokens)
    got = NativeBackend(source_of_package(parts), 1).logits(tokens)
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()  # 8-bit inputs, bf16 beside them


def with_weights(adapted: PeftModel, package: Package) -> PeftModel:
    """Return a copy of a model whose weights are those of a package, which may be rounded."""
    copied = copy.deepcopy(adapted)
    weights = dict(package.model_tensors())
    with torch.no_grad():
        for name, parameter in copied.get_base_model().named_parameters():
            if ".lora_" not in name:
                parameter.copy_(weights[name.replace(".base_layer.", ".")])
    return copied


@pytest.mark.parametrize("values", ["fp32", "int4"])
@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_of_every_architecture_is_its_model(tmp_path: Path, name: str, values: str) -> None:
    model = covered(name)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    package = read_package(
        export_adapter(str(tmp_path / "model"), tmp_path / "package", format="package", dtype=values)
    )
    weights = dict(package.model_tensors())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(weights[parameter_name])
    runtime, tokens = NativeBackend(source_of_package(package), 1), text(100)
    want = expected(model, tokens)
    tolerance = {"fp32": 1e-5, "int8": 0.02, "int4": 0.1}[values]  # bf16 keys, values and head; inputs of 8 bits
    assert np.abs(runtime.logits(tokens) - want).max() < tolerance * np.abs(want).max()
    assert runtime.describe()["values"] == values


def test_scalings_are_those_peft_computes(adapted: tuple[PeftModel, Path]) -> None:
    settings = json.loads((adapted[1] / ADAPTER_CONFIG).read_text())
    modules = {
        name: module for name, module in adapted[0].get_base_model().named_modules() if hasattr(module, "lora_A")
    }
    assert {scaling_of(settings, name) for name in modules} == {2.0, 10 / 3}
    assert all(scaling_of(settings, name) == module.scaling["default"] for name, module in modules.items())
    assert scaling_of({"r": 16, "lora_alpha": 8, "use_rslora": True}, "x") == 2.0
