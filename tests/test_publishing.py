"""What would be sent to the hub: every file, nothing hidden, no folder of this machine; and what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

import shears
from shears.errors import InputError
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model with a recovery inside, and a sub-adapter on it."""
    folder = tmp_path_factory.mktemp("made")
    save_tiny(folder / "base")
    sample = {"num_samples": 4, "sequence_length": 32}
    shears.sparsify(folder / "base", folder / "sparse", recover_rank=4, **sample)
    shears.train(folder / "sparse", folder / "super", data="arithmetic:train", ranks=(4, 2), max_steps=1, batch_size=2,
                 device="cpu")  # fmt: skip
    shears.export_adapter(folder / "super", folder / "sub")
    return folder


def test_a_dry_run_lists_every_file_with_its_size(made: Path) -> None:
    (made / "sub" / ".lock").touch()
    files = {file.name: file.size for file in shears.push(made / "sub", "me/sub", base="me/sparse", dry_run=True)}
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "sub_adapter.json"}
    assert files["adapter_model.safetensors"] == (made / "sub" / "adapter_model.safetensors").stat().st_size


def test_nothing_that_is_sent_names_a_folder_of_this_machine(made: Path) -> None:
    for name, base in (("sub", "me/sparse"), ("sparse", "me/base")):
        for file in shears.push(made / name, f"me/{name}", base=base, dry_run=True):
            content = file.content if file.content is not None else (made / name / file.name).read_bytes()
            assert str(made).encode() not in content, file.name
            assert len(content) == file.size
    sent = {file.name: file.content for file in shears.push(made / "sub", "me/sub", base="me/sparse", dry_run=True)}
    assert json.loads(sent["adapter_config.json"] or b"")["base_model_name_or_path"] == "me/sparse"
    assert ModelCard((sent["README.md"] or b"").decode()).data.to_dict()["base_model"] == "me/sparse"
    nested = {file.name: file.content for file in shears.push(made / "sparse", "me/it", base="me/base", dry_run=True)}
    assert json.loads(nested["recovery/adapter_config.json"] or b"")["base_model_name_or_path"] == "me/it"


def test_what_is_sent_is_what_a_dry_run_lists(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Sequence[CommitOperationAdd]]] = []

    class Commit:
        commit_url = "there"

    def create_commit(self: HfApi, repo: str, operations: Sequence[CommitOperationAdd], **_: object) -> Commit:
        calls.append((repo, operations))
        return Commit()

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    listed = shears.push(made / "sub", "me/sub", base="me/sparse")
    ((repo, operations),) = calls
    assert repo == "me/sub"
    assert [(item.path_in_repo, item.upload_info.size) for item in operations] == [(f.name, f.size) for f in listed]


def test_what_cannot_be_pushed_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="names the folder .*; push that first and give its repository as --base"):
        shears.push(made / "sub", "me/sub", dry_run=True)
    with pytest.raises(InputError, match="must be a model, an adapter or a package"):
        shears.push(tmp_path, "me/nothing", dry_run=True)
    with pytest.raises(InputError, match="must be named like owner/name, got 'a b'"):
        shears.push(made / "sub", "a b", base="me/sparse", dry_run=True)
    for base in ("/tmp", "not/a/valid/id", "", "../sparse"):
        with pytest.raises(InputError, match="the base must be named like owner/name, got"):
            shears.push(made / "sub", "me/sub", base=base, dry_run=True)
    with pytest.raises(InputError, match="the hub must take me/sub, got: .*log in with hf auth login"):
        shears.push(made / "sub", "me/sub", base="me/sparse")  # offline
    monkeypatch.chdir(made)
    with pytest.raises(InputError, match="got sparse, which is a path of this machine"):
        shears.push("sub", "me/sub", base="sparse", dry_run=True)


@pytest.mark.parametrize("record", ["recipe.yaml", "evaluation.json", "result.json"])
def test_a_run_or_a_search_is_no_artifact_to_push(record: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "sub", tmp_path / "it" / "sub_adapter")
    (tmp_path / "it" / record).write_text("{}")
    with pytest.raises(InputError, match="got the run or search .*it; push its sparse or sub_adapter folder"):
        shears.push(tmp_path / "it", "me/it", base="me/sparse", dry_run=True)


def test_a_model_beside_whose_files_a_measurement_was_written_is_a_model(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "base", tmp_path / "base")
    (tmp_path / "base" / "evaluation.json").write_text("{}")
    sent = {file.name for file in shears.push(tmp_path / "base", "me/base", dry_run=True)}
    assert {"config.json", "model.safetensors", "evaluation.json"} <= sent
    (tmp_path / "base" / "recipe.yaml").write_text("")  # a run was made in the model's own folder
    with pytest.raises(InputError, match="push its sparse or sub_adapter folder"):
        shears.push(tmp_path / "base", "me/base", dry_run=True)


@pytest.mark.parametrize("content", ["[]", "null", '"me/base"'])
def test_settings_of_an_adapter_that_are_no_object_are_refused(content: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "sub", tmp_path / "sub")
    (tmp_path / "sub" / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=r"adapter_config\.json must be a JSON object, got .*; make it again"):
        shears.push(tmp_path / "sub", "me/sub", base="me/sparse", dry_run=True)
