"""What a model folder is, is counted in its files: by layer, by kind of linear, by both; experts of a layer are one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shears.checkpoints.inspection import inspect
from shears.errors import InputError
from shears.records.artifacts import write_json
from tests.tiny import tiny_model


def _with_zeros(zeros: int, *shape: int) -> Tensor:
    tensor = torch.ones(shape)
    tensor.view(-1)[:zeros] = 0.0
    return tensor


def _folder(path: Path, *files: dict[str, Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", {})
    for number, tensors in enumerate(files):
        save_file(tensors, path / f"model-{number}.safetensors")
    return path


def test_every_linear_of_every_layer_has_its_share(tmp_path: Path) -> None:
    model, expected = tiny_model("llama_untied"), dict[str, dict[str, float]]()
    for index, block in enumerate(model.get_submodule("model.layers").children()):
        own = expected.setdefault(str(index), {})
        for number, (name, linear) in enumerate(block.named_modules()):
            if isinstance(linear, torch.nn.Linear):
                weight = linear.weight.data
                weight.view(-1)[: 5 * number + index] = 0.0
                own[name.rsplit(".", 1)[-1]] = sum(value == 0.0 for value in weight.flatten().tolist()) / weight.numel()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    data = inspect(tmp_path / "model")
    assert data["sparsity_by_linear"] == expected
    order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert list(data["sparsity_by_linear"]["0"]) == order
    assert list(data["sparsity_by_kind"]) == list(data["sparsity_by_linear"]["1"])


def test_experts_in_files_of_their_own_are_one_figure_a_layer(tmp_path: Path) -> None:
    experts = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight": _with_zeros(expert + layer, 2, 4)
        for layer in range(2)
        for expert in range(4)
        for name in ("w1", "w2")
    }
    router = {"model.layers.0.block_sparse_moe.gate.weight": _with_zeros(0, 4, 4)}
    data = inspect(_folder(tmp_path / "model", experts, router))
    assert data["sparsity_by_linear"] == {
        "0": {"gate": 0.0, "experts.w1": 6 / 32, "experts.w2": 6 / 32},
        "1": {"experts.w1": 10 / 32, "experts.w2": 10 / 32},
    }
    assert data["sparsity_by_kind"] == {"gate": 0.0, "experts.w1": 16 / 64, "experts.w2": 16 / 64}
    assert data["sparsity_by_layer"] == {"0": 12 / 80, "1": 20 / 64}
    assert data["sparsity"] == 32 / 144


def test_a_stack_of_experts_counts_and_its_biases_norms_and_embeddings_do_not(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": _with_zeros(8, 4, 4),
        "model.layers.0.input_layernorm.weight": _with_zeros(2, 4),
        "model.layers.0.mlp.experts.gate_up_proj": _with_zeros(6, 2, 3, 4),
        "model.layers.0.mlp.experts.gate_up_proj_bias": _with_zeros(6, 2, 4),
        "model.layers.0.mlp.experts.down_proj_scales": torch.zeros(2, 3, 4, dtype=torch.uint8),
        "model.layers.0.mixer.A_log": _with_zeros(3, 2, 3),
    }
    data = inspect(_folder(tmp_path / "model", tensors))
    assert data["sparsity_by_linear"] == {"0": {"experts.gate_up_proj": 6 / 24}}
    assert data["sparsity"] == 6 / 24
    assert data["nonzeros"] == 8 + 2 + 18 + 2 + 0 + 3


def test_blocks_of_an_image_encoder_are_no_layers_of_the_decoder(tmp_path: Path) -> None:
    """They have its numbers and the names of its linears, and are not pruned."""
    dense, sparse = _with_zeros(0, 2, 4), _with_zeros(8, 4, 4)
    encoder = {
        f"model.vision_tower.encoder.layers.{layer}.self_attn.q_proj.weight": dense.clone() for layer in range(3)
    }
    decoder = {f"model.language_model.layers.{layer}.self_attn.q_proj.weight": sparse.clone() for layer in range(2)}
    data = inspect(_folder(tmp_path / "model", encoder | decoder))
    assert data["sparsity"] == data["sparsity_by_kind"]["q_proj"] == 0.5
    assert list(data["sparsity_by_layer"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model-0.safetensors", "torn", "model-0.safetensors cannot be read"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "config.json must be a JSON object, got"),
        ("sparsity.json", "[]", "sparsity.json must be a JSON object, got"),
        ("search_space.json", "[]", "search_space.json must be a JSON object, got"),
        ("package.json", "{}", "package.json must be as shears wrote it, it lacks bytes, ratio"),
        ("package.json", "[]", "package.json must be a JSON object"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = _folder(tmp_path / "model", {"head.weight": _with_zeros(1, 2, 2)})
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        inspect(folder)


def test_a_folder_that_is_no_artifact_is_an_error_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    for path, message in ((".", "must be a model"), ("/", "must be a model"), ("list.json", "must be a JSON object")):
        with pytest.raises(InputError, match=message):
            inspect(path)
