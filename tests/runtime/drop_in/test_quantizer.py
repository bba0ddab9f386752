"""transformers opens packages after `import shears`: base and adapter, as `shears generate` computes them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.quantizers import auto

from shears.checkpoints.packed.marks import METHOD
from shears.errors import InputError
from shears.export.package import unpack
from shears.export.stage import export_adapter
from shears.models.load import load_model, load_with_adapter
from shears.records.artifacts import read_object, write_json
from shears.records.publishing import push
from shears.runtime.drop_in import registration
from shears.runtime.drop_in.linears import MergedLinear, PackedLinear
from shears.runtime.drop_in.swap import DropInBackend
from shears.runtime.generation.engine import Engine
from tests.export.made import IDS, half_sparse, logits, super_adapter
from tests.export.packages import as_before, package

QUANTIZED: dict[str, Any] = {"values": "int4", "embeddings": "int4"}


def opened(folder: Path | str, **options: Any) -> Any:
    """The model through nothing but transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)


def adapted(folder: Path, name: str = "llama", **options: Any) -> Path:
    """A package with an un-merged adapter, of fp32 values unless `options` say others."""
    adapter = super_adapter(folder / "super", half_sparse(folder / "base", name))
    written = {"format": "package", "values": "fp32", "ranks": "maximal", **options}
    return export_adapter(adapter, folder / "package", **written)


@pytest.mark.parametrize(
    ("name", "with_adapter", "options"),
    [
        ("llama", True, {}),
        ("llama_untied", True, {"values": "bf16", "embeddings": "int8"}),
        ("llama", False, QUANTIZED),
        ("gpt2", True, {}),
        ("qwen3_moe", False, {"values": "int8"}),
    ],
)
def test_the_model_of_a_package_is_base_and_adapter(
    name: str, with_adapter: bool, options: dict[str, Any], path: str, tmp_path: Path
) -> None:
    if with_adapter:
        made = adapted(tmp_path, name, **options)
    else:
        made = package(half_sparse(tmp_path / "m", name), tmp_path / "package", **options)
    model = opened(made, dtype=torch.float32)
    dense: Any = load_with_adapter(made, dtype="fp32", device="cpu")[0]
    assert type(model) is type(dense.get_base_model() if with_adapter else dense)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == {"gpt2": 8, "qwen3_moe": 11}.get(name, 14)  # experts are no linears
    assert any(module.update is not None for module in packed) == with_adapter
    rounding = 0.03 if path == "kernels" and options else 1e-4  # the kernels round activations, to 16 bits beside int8
    torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=rounding)


@pytest.mark.parametrize("options", [{}, QUANTIZED])
def test_generate_gives_the_tokens_of_shears_generate(options: dict[str, Any], tmp_path: Path) -> None:
    made = adapted(tmp_path, **options)
    tokenizer = AutoTokenizer.from_pretrained(made)
    prompt = tokenizer("three apples")["input_ids"]
    answer = opened(made).generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
    engine = Engine(DropInBackend(made, threads=1), tokenizer, frozenset({256}))
    expected = engine.generate(prompt, max_new_tokens=24, temperature=0.0).tokens
    assert answer.tolist()[: len(expected)] == list(expected)
    assert len(expected) > 8


def test_a_pipeline_writes_text(tmp_path: Path) -> None:
    made = adapted(tmp_path)
    (said,) = pipeline("text-generation", model=str(made), device="cpu")("abc", max_new_tokens=8, do_sample=False)
    model, tokenizer = opened(made), AutoTokenizer.from_pretrained(made)
    answer = model.generate(**tokenizer("abc", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert said["generated_text"] == tokenizer.decode(answer[0], skip_special_tokens=True)


@pytest.mark.filterwarnings("default")  # lm-eval's own
def test_lm_eval_opens_a_package_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made = package(half_sparse(tmp_path / "m"), tmp_path / "package", **QUANTIZED)
    unpack(made, tmp_path / "dense")
    asked = [Instance("loglikelihood", {}, (question, " 4"), 0) for question in ("2+2 is", "1+2 is", "9")]
    of_package, of_dense = (
        HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32").loglikelihood(asked)
        for folder in (made, tmp_path / "dense" / "model")
    )
    assert [greedy for _, greedy in of_package] == [greedy for _, greedy in of_dense]
    numbers = [torch.tensor([value for value, _ in each]) for each in (of_package, of_dense)]
    torch.testing.assert_close(*numbers, rtol=0, atol=0.02)  # the dense folder rounds int4 to bf16


def test_a_lora_on_top_trains_as_on_the_dense_model(path: str, tmp_path: Path) -> None:
    """Losses and gradients are those of the same steps on the dense weights, adapter of the package included."""
    made = adapted(tmp_path, **QUANTIZED)
    merged: Any = load_with_adapter(made, dtype="fp32", device="cpu")[0]
    losses = []
    for base in (opened(made, dtype=torch.float32), merged.merge_and_unload()):
        frozen = {name: parameter.clone() for name, parameter in base.named_parameters()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules=["q_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
            model = get_peft_model(base, config)
        losses.append(_trained(model))
        with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert with_gradient == {name for name, _ in model.named_parameters() if ".lora_" in name}
        for name, parameter in base.named_parameters():
            plain = name.replace(".base_layer.", ".")
            assert plain not in frozen or torch.equal(parameter, frozen[plain])
    assert losses[0][-1] < losses[0][0] - 0.1
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=1e-3)


def _trained(model: nn.Module) -> list[float]:
    """Losses of six steps."""
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_packed_weight_is_read_and_never_silently_written(tmp_path: Path) -> None:
    """PEFT merges by writing the weight, which would be lost."""
    base = opened(adapted(tmp_path))
    model: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for safe in (True, False):
        with pytest.raises(InputError, match="densify_linears"):
            model.merge_adapter(safe_merge=safe)
    with pytest.raises(InputError, match="densify_linears"):
        get_peft_model(opened(tmp_path / "package"), LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"))


def test_dequantize_gives_the_dense_model_adapter_merged(tmp_path: Path) -> None:
    model = opened(adapted(tmp_path))
    before = logits(model)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")
    assert any(isinstance(module, MergedLinear) for module in model.modules())
    model.dequantize()
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(load_model(tmp_path / "saved", device="cpu")), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"alora_invocation_tokens": [7, 8]}])
def test_an_adapter_that_is_more_than_lora_counts_or_is_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    base = half_sparse(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **setting)
    get_peft_model(load_model(base, device="cpu"), config).save_pretrained(str(tmp_path / "adapter"))
    made = package(tmp_path / "adapter", tmp_path / "package", model=str(base), values="fp32")
    if "alora_invocation_tokens" in setting:
        with pytest.raises(InputError, match="needs PEFT's class"):
            opened(made)
        return
    torch.testing.assert_close(
        logits(opened(made)), logits(load_with_adapter(made, device="cpu")[0]), rtol=0, atol=1e-4
    )


def test_the_generation_settings_and_the_callers_options_count(tmp_path: Path) -> None:
    made = package(half_sparse(tmp_path / "m"), tmp_path / "package")
    write_json(made / "generation_config.json", {"eos_token_id": [7, 9], "pad_token_id": 7})
    model = opened(made, attn_implementation="eager", dtype=torch.bfloat16)
    assert model.generation_config.eos_token_id == [7, 9]
    assert model.config._attn_implementation == "eager"
    assert model.dtype == torch.bfloat16
    assert model.model.config is model.config
    with pytest.raises(InputError, match="onto one device, got cpu, disk"):
        opened(made, device_map={"model": "cpu", "lm_head": "disk"})


def test_a_package_on_the_hub_is_opened_by_its_repository(tmp_path: Path) -> None:
    """The files of `shears push`, in the form of the hub's cache; without a network."""
    made = adapted(tmp_path, **QUANTIZED)
    hub = tmp_path / "hub" / "models--me--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (hub / folder).mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    wanted = ("config.json", "generation_config.json", "package.safetensors")  # what transformers asks for
    for file in push(made, "me/tiny", base="me/base", dry_run=True):
        if file.name in wanted:
            (hub / "blobs" / file.name).write_bytes(file.content or (made / file.name).read_bytes())
            (hub / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{file.name}")
    model = opened("me/tiny", cache_dir=tmp_path / "hub", local_files_only=True)
    assert torch.equal(logits(model), logits(opened(made)))


def test_without_shears_the_error_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = package(half_sparse(tmp_path / "m"), tmp_path / "package")
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, METHOD)
    with pytest.raises(ValueError, match="pip install shears-llm, and import shears before from_pretrained"):
        opened(made)


@pytest.mark.parametrize("loaded_first", [True, False])
def test_registration_waits_for_transformers(loaded_first: bool, tmp_path: Path) -> None:
    """With stand-ins for both modules: the order of the imports does not matter, and each happens once."""
    (tmp_path / "lookup.py").write_text("methods = []\n")
    (tmp_path / "quantizer.py").write_text("import lookup\nlookup.methods.append('ours')\n")
    first, second = ("import lookup", "register(), register()")[:: 1 if loaded_first else -1]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from shears.runtime.drop_in import registration\n"
        "sys.meta_path[:] = [each for each in sys.meta_path if type(each) is not registration._Finder]\n"
        "registration.LOOKED_UP_IN, registration.REGISTERS = 'lookup', 'quantizer'\n"
        f"from shears.runtime.drop_in.registration import register\n{first}\n{second}\nimport lookup\n"
        "import inspect; assert lookup.methods == ['ours'], lookup.methods; assert inspect.getsource(lookup)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert registration.LOOKED_UP_IN in sys.modules


def test_what_is_hostile_is_refused_before_a_model_is_built(tmp_path: Path) -> None:
    made = package(half_sparse(tmp_path / "m"), tmp_path / "package")
    config = read_object(made / "config.json")
    (made / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    for changes, message in (
        ({"num_hidden_layers": 10**9}, "must describe the weights beside it, got num_hidden_layers"),
        ({"attn_implementation": "someone/kernels"}, "got the repository someone/kernels"),
        ({"auto_map": code}, "holds no code"),
    ):
        write_json(made / "config.json", config | changes)
        with pytest.raises(InputError, match=message):
            opened(made)
    assert not (tmp_path / "ran").exists()
    write_json(made / "config.json", config)
    whole = (made / "package.safetensors").read_bytes()
    (made / "package.safetensors").write_bytes(whole[:-80] + bytes(80))
    for message in ("must be those of package.json", "must have the fingerprint"):  # with the record, and from the hub
        with pytest.raises(InputError, match=message):
            opened(made)
        (made / "package.json").unlink(missing_ok=True)


def test_a_package_of_before_loads_with_the_verbs_of_shears(tmp_path: Path) -> None:
    """Its config.json is the model's own, and PEFT's settings lie beside it."""
    made = adapted(tmp_path)
    expected = logits(load_with_adapter(made, device="cpu")[0])
    settings = as_before(made)
    assert torch.equal(logits(load_with_adapter(made, device="cpu")[0]), expected)
    unpack(made, tmp_path / "unpacked")
    assert json.loads((tmp_path / "unpacked" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    settings.unlink()
    with pytest.raises(InputError, match=r"must hold its adapter_config in config\.json"):
        load_with_adapter(made, device="cpu")
