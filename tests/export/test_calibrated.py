"""Packages rounded on a calibration text: nearer to the model than rounding to nearest, in every form of file."""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.checkpoints.inspection import inspect
from shears.checkpoints.package_file import read_package
from shears.data.calibration import calibration_batches
from shears.errors import InputError
from shears.export import calibrated as calibrated_module
from shears.models.load import load_with_adapter
from shears.models.ref import load_tokenizer, resolve
from shears.quantization.grid import quantize
from shears.quantization.with_inputs import round_with_inputs
from shears.records.artifacts import PACKAGE, README, read_record
from tests.checkpoints.masked import num_kept
from tests.export.made import half_sparse, stock, super_adapter
from tests.export.packages import all_tensors, package, unpack

SAMPLES, LENGTH = 8, 16
LATE = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"{number} squared is {number * number}." for number in range(60)))
    return str(path)


def calibrated(source: Path, output: Path, text: str, **config: Any) -> Path:
    options = {"dtype": "int4", "num_samples": SAMPLES, "sequence_length": LENGTH, **config}
    return package(source, output, calibration=text, **options)


def sequences(model: Path, text: str) -> Tensor:
    """The calibration sequences, which the draw of calibration gives."""
    return torch.cat(calibration_batches(text, load_tokenizer(resolve(model)), SAMPLES, LENGTH, 2, 0).batches)


def inputs_of(model: Path, linear: str, tokens: Tensor) -> Tensor:
    """The inputs of a linear (T I) in transformers' float32 forward."""
    network = stock(model).float()
    return caught_inputs(network, network.get_submodule(linear), tokens)


def caught_inputs(network: torch.nn.Module, linear: torch.nn.Module, tokens: Tensor) -> Tensor:
    caught: list[Tensor] = []
    hook = linear.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0]))
    with torch.no_grad():
        network(tokens)
    hook.remove()
    return caught[0].flatten(0, 1)


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_every_form_of_file_is_rounded_with_its_zeros(name: str, text: str, tmp_path: Path) -> None:
    """GPT-2's weights are transposed, Phi-3's q, k and v in one tensor."""
    base = half_sparse(tmp_path / "base", name)
    out = calibrated(base, tmp_path / "out", text)
    before, after = all_tensors(base), all_tensors(unpack(out, tmp_path / "back"))
    opened = read_package(out)
    assert not read_record(out, PACKAGE)["rounded"]["to_nearest"]
    moved = 0
    for linear, matrix in opened.packed.items():
        weight = before[f"{linear}.weight"]
        assert not after[f"{linear}.weight"][weight == 0].any()
        assert matrix.masks is None or num_kept(matrix) == int((weight.view(torch.int32) != 0).sum())
        nearest = quantize(weight.T.contiguous() if opened.index.packed[linear].transposed else weight, "int4")
        moved += not torch.equal(opened.weight(linear).T.flatten().sort()[0], nearest.dense().flatten().sort()[0])
    assert moved == len(opened.packed)


def test_outputs_are_nearer_to_the_models_than_those_rounded_to_nearest(text: str, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    tokens = sequences(base, text)
    before = all_tensors(base)
    packages = {
        "nearest": package(base, tmp_path / "nearest", dtype="int4"),
        "calibrated": calibrated(base, tmp_path / "calibrated", text, dtype="int4"),
    }
    first = "model.layers.0.self_attn.q_proj"
    inputs = inputs_of(base, first, tokens)
    with torch.no_grad():
        reference = stock(base)(tokens).logits
    errors: dict[str, list[float]] = {}
    for name, folder in packages.items():
        error = (read_package(folder).weight(first) - before[f"{first}.weight"]) @ inputs.T
        with torch.no_grad():
            off = load_with_adapter(folder)[0].float()(tokens).logits - reference
        errors[name] = [float(error.square().sum()), float(off.square().mean())]
    assert errors["calibrated"][0] < 0.6 * errors["nearest"][0]
    assert errors["calibrated"][1] < 0.8 * errors["nearest"][1]
    record = read_record(packages["calibrated"], PACKAGE)
    assert record["calibration_sha256"] == hashlib.sha256(Path(text).read_bytes()).hexdigest()
    assert record["rounded"]["method"]
    assert f"not zero, rounded on `{Path(text).name}`" in (packages["calibrated"] / README).read_text()
    assert inspect(packages["calibrated"])["calibration_fingerprint"] == record["calibration_fingerprint"]


@pytest.mark.parametrize("sparse_adapter", [False, True])
def test_an_adapter_is_rounded_around_or_merged_before(sparse_adapter: bool, text: str, tmp_path: Path) -> None:
    """An un-merged adapter changes the inputs that weights are rounded on; a masked one is part of the weights."""
    base = half_sparse(tmp_path / "base")
    adapter = super_adapter(tmp_path / "adapter", base, sparse_adapter=sparse_adapter)
    out = calibrated(adapter, tmp_path / "out", text)
    nearest = package(adapter, tmp_path / "nearest", dtype="int4")
    assert bool(read_package(out).index.adapter) is not sparse_adapter
    folders = (package(adapter, tmp_path / "exact"), nearest, out)
    with torch.no_grad():
        exact, *rounded = (load_with_adapter(folder)[0].float()(sequences(base, text)).logits for folder in folders)
    errors = [float((one - exact).square().mean()) for one in rounded]
    assert errors[1] < 0.8 * errors[0]
    if not sparse_adapter:
        alone = calibrated(base, tmp_path / "alone", text)
        late = "model.layers.1.mlp.down_proj"
        assert not torch.equal(read_package(out).weight(late), read_package(alone).weight(late))


@pytest.mark.parametrize("adapter", [False, True])
def test_a_linear_is_fitted_to_its_outputs_in_the_model_not_rounded(
    adapter: bool, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the outputs lack is measured in two float32 forwards: of the model, and of its linears as rounded."""
    model = base = half_sparse(tmp_path / "base")
    if adapter:
        model = super_adapter(tmp_path / "adapter", base, sparse_adapter=False)
    given: dict[str, tuple[Tensor, Tensor]] = {}
    names: list[str] = []
    rounded = calibrated_module._Rounding._rounded

    def record(self: Any, matrix: Any, moments: Any, drift: Any) -> Any:
        names.append(matrix.name)
        return rounded(self, matrix, moments, drift)

    def listen(weight: Tensor, kept: Tensor, moments: Tensor, missed: Tensor) -> Any:
        given[names[-1]] = (moments.clone(), missed)
        return round_with_inputs(weight, kept, moments, missed=missed)

    monkeypatch.setattr(calibrated_module._Rounding, "_rounded", record)
    monkeypatch.setattr(calibrated_module, "round_with_inputs", listen)
    monkeypatch.setattr(calibrated_module, "autocast", lambda *_: nullcontext())
    out = read_package(calibrated(model, tmp_path / "out", text))
    tokens = sequences(base, text)
    network = load_with_adapter(package(model, tmp_path / "exact"))[0].float()
    modules = dict(network.named_modules())
    by_name = {name: next(m for full, m in modules.items() if full.endswith(name)) for name in given}
    exact = {name: caught_inputs(network, by_name[name], tokens) for name in LATE}
    for name, module in by_name.items():
        if name in LATE:
            inputs = caught_inputs(network, module, tokens)
            with torch.no_grad():
                lacking = module(exact[name]) - module(inputs)
            moments, missed = given[name]
            expected = inputs.T @ lacking
            torch.testing.assert_close(moments, inputs.T @ inputs, rtol=1e-3, atol=1e-4)  # batches summed otherwise
            torch.testing.assert_close(missed, expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max()))
        getattr(module, "base_layer", module).weight.data.copy_(out.weight(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "needs dtype int4"),
        ({"calibration": "nowhere.txt", "sequence_length": 9}, "nowhere.txt cannot be read: it does not exist"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options: dict[str, Any], message: str, text: str, tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    with pytest.raises(InputError, match=message) as caught:
        package(base, tmp_path / "out", **{"dtype": "int4", "calibration": text, **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
