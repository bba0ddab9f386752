"""What would be sent to the hub: every file, nothing hidden, no folder of this machine; and what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

import shears
from shears.errors import InputError
from shears.records.artifacts import KINDS
from tests.tiny import save_tiny

SECRET = "nobody-may-know"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model with a recovery inside, adapters on it, and what they were merged and packed into.

    All of them were made from files in a folder called SECRET.
    """
    folder = tmp_path_factory.mktemp(SECRET)
    save_tiny(folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "_name_or_path": f"{folder}/origin"}))
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} and 1?", "completion": f"It is {i + 1}."}) + "\n"
                            for i in range(40)))  # fmt: skip
    sample: dict[str, Any] = {"num_samples": 4, "sequence_length": 32, "calibration": str(data)}
    shears.sparsify(folder / "base", folder / "sparse", recover_rank=4, **sample)
    shears.train(folder / "sparse", folder / "super", data=str(data), ranks=(4, 2), max_steps=1, batch_size=2,
                 device="cpu")  # fmt: skip
    shears.export_adapter(folder / "super", folder / "sub")
    shears.export_adapter(folder / "sub", folder / "merged", format="merged-sparse", **sample)
    shears.export_adapter(folder / "sub", folder / "package", format="package")
    shears.export_adapter(folder / "package", folder / "unpacked", format="unpacked")
    shears.evaluate(str(folder / "sparse"), folder / "sparse" / "figures.json", adapter=str(folder / "sub"),
                    data=str(data), task="number", limit=1, max_new_tokens=2, device="cpu")  # fmt: skip
    return folder


def sent(folder: Path, repo: str, base: str | None = None) -> dict[str, bytes]:
    """Return the content of every file that would be sent."""
    files = shears.push(folder, repo, base=base, dry_run=True)
    assert all(len(file.content) == file.size for file in files if file.content is not None)
    return {file.name: file.content or (folder / file.name).read_bytes() for file in files}


@pytest.mark.parametrize("name", ["sparse", "super", "sub", "merged", "package", "unpacked/adapter"])
def test_no_uploaded_file_contains_a_local_folder(name: str, made: Path) -> None:
    assert any(SECRET.encode() in file.read_bytes() for file in (made / name).rglob("*.json"))
    files = sent(made / name, "me/it", "me/base")
    assert [file for file, content in files.items() if SECRET.encode() in content] == []
    record = json.loads(next(files[kind] for kind in KINDS if kind in files))
    assert record["model" if name == "sparse" else "base"] == "me/base"


LOADED = 'AutoModelForCausalLM.from_pretrained("me/base")'


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sparse", ['model = AutoModelForCausalLM.from_pretrained("me/it")', "vllm serve me/it\n"]),
        ("merged", ['tokenizer = AutoTokenizer.from_pretrained("me/it")', "shears export it gguf --format gguf"]),
        ("sub", [f'PeftModel.from_pretrained({LOADED}, "me/it")', "vllm serve me/base ", "--lora-modules it=me/it\n"]),
        ("super", [f'PeftModel.from_pretrained({LOADED}, "me/it")', "hf download me/it --local-dir it\n",
                   "shears search it search"]),
        ("package", ["hf download me/it --local-dir it\n", "shears generate it "]),
    ],
)  # fmt: skip
def test_a_pushed_card_loads_from_the_hub(name: str, code: list[str], made: Path) -> None:
    text = sent(made / name, "me/it", "me/base")["README.md"].decode()
    title, paragraph = ModelCard(text).text.strip().split("\n\n")[:2]
    assert "me/base" in title
    assert "`me/base` (weights" in paragraph
    assert [line for line in code if line not in text] == []
    own = {"sub": "sub_adapter", "super": "super_adapter"}.get(name, name)
    assert f'"{own}"' not in text
    assert f" {own} --" not in text
    assert '"sparse"' not in text


def test_a_push_uploads_the_files_of_the_dry_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def _changed(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda sub: sub, {"base": None}, "must be on the hub, .* names the folder .*; push that folder first"),
        (lambda sub: sub.parent, {}, "push needs the folder of a model, an adapter or a package"),
        (lambda sub: sub, {"repo": "a b"}, "must be named like owner/name, got 'a b'"),
        (lambda sub: sub, {"repo": "sub"}, "must be named like owner/name, got 'sub'"),
        (lambda sub: sub, {"base": "/tmp"}, "/tmp"),
        (lambda sub: sub, {"base": "../sparse"}, "sparse"),
        (lambda sub: sub, {"dry_run": False}, "the repository me/it cannot be used"),  # offline
        (lambda sub: _changed(sub, "adapter_config.json", b"[]"), {}, r"adapter_config\.json"),
        (lambda sub: _changed(sub, "README.md", b"---\na: [1,\n---\ntext"), {}, r"README\.md cannot be read"),
        (lambda sub: _changed(sub, "README.md", b"caf\xe9"), {}, r"README\.md cannot be read"),
    ],
)
def test_what_cannot_be_pushed_is_refused(
    make: Any, options: dict[str, Any], message: str, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "sub", tmp_path / "run" / "sub")
    keywords = {"repo": "me/it", "base": "me/sparse", "dry_run": True, **options}
    with pytest.raises(InputError, match=message):
        shears.push(make(tmp_path / "run" / "sub"), **keywords)


def test_files_of_the_trainer_are_not_uploaded(made: Path, tmp_path: Path) -> None:
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


def test_a_link_out_of_the_folder_is_not_uploaded(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    shutil.copytree(made / "sub", folder)
    (folder / "inside.txt").write_text("mine")
    (folder / "link.txt").symlink_to("inside.txt")
    assert "link.txt" in sent(folder, "me/sub", "me/base")
    (tmp_path / "id_rsa").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(InputError, match=r"notes\.txt must be a file of its own folder, it is a link"):
        sent(folder, "me/sub", "me/base")
