"""Any name becomes a model; its blocks and linears are found by structure, not by architecture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shears.config.targets import matching
from shears.errors import InputError
from shears.models import load as models
from tests.tiny import save_tiny, tiny_model


def test_a_folder_is_itself_and_a_hub_id_stays_a_name(tmp_path: Path) -> None:
    assert models.resolve_model(str(save_tiny(tmp_path / "m"))) == tmp_path / "m"
    assert models.resolve_model("org/some-model.v2") == "org/some-model.v2"
    assert models.resolve_model("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["./nothing", "/no/such/model", "a/b/c", "absent.gguf", "runs/absent"])
def test_a_missing_path_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()  # so runs/absent is meant as a path
    with pytest.raises(InputError, match="the model must exist"):
        models.resolve_model(name)


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold config\.json"):
        models.resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="got the adapter"):
        models.resolve_model(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="got the file"):
        models.resolve_model(str(tmp_path / "notes.txt"))


def test_an_unreachable_hub_id_is_one_line() -> None:
    with pytest.raises(InputError, match="reachable hub id, got 'no-such-org/no-such-model'") as caught:
        models.load_model("no-such-org/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_loaded_model_is_in_evaluation_mode_and_keeps_its_dtype(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    assert not models.load_model(folder).training
    assert models.load_model(folder, device="cpu").dtype == torch.float32
    assert models.load_model(folder, dtype="bf16").dtype == torch.bfloat16


def test_a_tokenizer_without_padding_pads_with_the_end(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256


def test_weights_that_are_missing_are_refused_not_random(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "m") / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 are missing .*layers\.0\.mlp\.up_proj"):
        models.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "damage", ["torn weights", "torn config", "unknown architecture", "other shapes", "no weights"]
)
def test_a_damaged_folder_is_one_line(damage: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    if damage == "torn weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "torn config":
        (folder / "config.json").write_text('{"model_type": ')
    elif damage == "unknown architecture":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonsense", "architectures": []}))
    else:
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(InputError) as caught:
        models.load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"must come with a tokenizer .*[^:]$"):
        models.load_tokenizer(folder)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_are_outputs_by_inputs_and_share_storage(name: str) -> None:
    model = tiny_model(name)
    linear = models.linears(model)["transformer.h.0.mlp.c_fc" if name == "gpt2" else "model.layers.0.mlp.up_proj"]
    weight = models.weight_oi(linear)
    assert weight.shape == (48, 32)
    assert weight.data_ptr() == linear.get_parameter("weight").data_ptr()


NAMES = ["model.layers.0.q_proj", "model.layers.0.k_proj", "model.layers.1.q_proj", "model.layers.1.k_proj"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [0, 2]),
        (["1.q_proj", "0.k_proj"], [1, 2]),
        ([r".*layers\.1\..*"], [2, 3]),
        (["q_proj", ".*q_proj"], [0, 2]),
        ([], []),
    ],
)
def test_targets_match_by_suffix_or_whole_regex_in_the_models_order(targets: list[str], expected: list[int]) -> None:
    assert matching(NAMES, targets) == [NAMES[index] for index in expected]


@pytest.mark.parametrize("target", ["proj", "roj", "layers", "q_projx"])
def test_parts_of_names_do_not_match(target: str) -> None:
    with pytest.raises(InputError, match="this model has q_proj, k_proj"):
        matching(NAMES, [target])


def test_a_misspelt_target_gets_a_suggestion_and_a_bad_regex_its_reason() -> None:
    with pytest.raises(InputError, match=r"'q_porj'; this model has q_proj, k_proj; did you mean 'q_proj'\?"):
        matching(NAMES, ["q_proj", "q_porj"])
    with pytest.raises(InputError, match=r"must be a name or a regex, got '\*'"):
        matching(NAMES, ["*"])


def test_precision_follows_the_device() -> None:
    assert models.resolved_precision("fp32", "cuda") == "fp32"
    assert models.resolved_precision("bf16", "cpu") == "bf16"
    assert models.resolved_precision("auto", "mps") == "fp32"
    with pytest.raises(InputError, match="fp16 needs a CUDA device, got cpu"):
        models.resolved_precision("fp16", "cpu")


@pytest.mark.parametrize(("capability", "expected"), [({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")])
def test_auto_precision_asks_the_processor(
    capability: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capability)
    assert models.resolved_precision("auto", "cpu") == expected


def test_autocast_does_what_it_says() -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with models.autocast(precision, "cpu"):
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_a_device_that_is_not_there_is_refused() -> None:
    assert models.pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device must be one that this machine has, got 'cuda:3'"):
            models.pick_device("cuda:3")


def test_threads_can_be_set() -> None:
    before = torch.get_num_threads()
    models.set_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    models.set_threads(before)
    models.set_threads(None)
    with pytest.raises(InputError, match="threads must be 1 to 1024, got 100000"):
        models.set_threads(100_000)
    assert torch.get_num_threads() == before


def test_a_card_beyond_those_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert models.pick_device("cuda:1") == torch.device("cuda:1")
    assert models.pick_device("cuda").type == "cuda"
    with pytest.raises(InputError, match="device must be one that this machine has, got 'cuda:2'"):
        models.pick_device("cuda:2")
