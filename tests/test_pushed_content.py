"""What is sent to the hub of files that other tools wrote: no training's state, no folder, the base's name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import shears
from shears.errors import InputError
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a sub-adapter."""
    folder = tmp_path_factory.mktemp("pushed")
    save_tiny(folder / "base")
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "1 and 1?", "completion": "It is 2."}))
    shears.train(folder / "base", folder / "super", data=str(folder / "rows.jsonl"), max_steps=1, device="cpu")
    shears.export_adapter(folder / "super", folder / "sub")
    return folder


def _sent_settings(adapter: Path) -> dict[str, Any]:
    """Return the adapter_config.json that would be sent."""
    files = {file.name: file.content for file in shears.push(adapter, "me/it", base="me/base", dry_run=True)}
    content = files["adapter_config.json"]
    assert content is not None
    found: dict[str, Any] = json.loads(content)
    return found


def test_what_a_training_leaves_beside_a_model_is_not_sent(made: Path, tmp_path: Path) -> None:
    """Checkpoints, the optimizer's state, and settings that name folders of this machine."""
    shutil.copytree(made / "base", tmp_path / "base")
    left = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth",
            "trainer_state.json", "checkpoint-12/model.safetensors", "runs/events.out.tfevents.1.host"]  # fmt: skip
    for name in [*left, "checkpoint.md"]:
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_text(f'{{"output_dir": "{made}"}}')
    files = {file.name for file in shears.push(tmp_path / "base", "me/base", dry_run=True)}
    assert files & set(left) == set()
    assert {"config.json", "model.safetensors", "checkpoint.md"} <= files


@pytest.mark.parametrize("key", ["tokenizer_name_or_path", "tokenizer", "cache_file", "covariance_file"])
def test_settings_of_other_tools_name_no_folder(key: str, made: Path, tmp_path: Path) -> None:
    """Of PEFT's prompt tuning and CorDA, of GPTQ's quantization."""
    shutil.copytree(made / "sub", tmp_path / "sub")
    path = tmp_path / "sub" / "adapter_config.json"
    settings = {**json.loads(path.read_text()), "more": {key: f"{made}/it", "also": "org/name"}, key: "org/name"}
    path.write_text(json.dumps(settings))
    found = _sent_settings(tmp_path / "sub")
    assert (found["more"], found[key]) == ({key: "it", "also": "org/name"}, "org/name")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"---\na: [1,\n---\ntext", "must begin with metadata in YAML, got"), (b"caf\xe9", "must be UTF-8 text, got")],
)
def test_a_card_that_cannot_be_read_is_refused(content: bytes, message: str, made: Path, tmp_path: Path) -> None:
    for name in ("base", "sub"):
        shutil.copytree(made / name, tmp_path / name)
        (tmp_path / name / "README.md").write_bytes(content)
        with pytest.raises(InputError, match=rf"README\.md {message}"):
            shears.push(tmp_path / name, "me/it", base="me/base", dry_run=True)


def test_an_adapter_that_names_no_base_gets_the_one_given(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "sub", tmp_path / "sub")
    path = tmp_path / "sub" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    found = _sent_settings(tmp_path / "sub")
    assert found["base_model_name_or_path"] == "me/base"
