"""Files that come with a model and are no code: what is wrong in them is refused, and they write nowhere else."""

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest

from shears.errors import InputError
from shears.models.load import copy_configs
from shears.models.ref import load_tokenizer, resolve
from shears.records.artifacts import read_json
from shears.runtime.loading import load
from shears.sparsity.sparsify import sparsify
from tests.models.gguf_files import write_gguf
from tests.tiny import save_tiny

REACHES_OUT = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ (messages | attr('__class__')).__mro__ }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
)


def test_a_damaged_gguf_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    draw = random.Random(0)
    head = len(whole) // 20  # names, types and sizes
    refused = 0
    for number in range(30):
        content = bytearray(whole[: draw.randrange(head)] if number % 3 == 0 else whole)
        for _ in range(0 if number % 3 == 0 else 3):
            content[draw.randrange(head)] = draw.randrange(256)
        file = tmp_path / f"damaged{number}.gguf"
        file.write_bytes(content)
        with suppress(InputError):
            resolve(file)
            refused -= 1
        refused += 1
    assert refused >= 10  # all that were cut off; a flipped letter of a token's text does no harm
    assert {path.suffix for path in tmp_path.iterdir()} <= {".gguf", ""}


@pytest.mark.parametrize("template", REACHES_OUT)
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_chat_template_is_rendered_in_a_sandbox(kind: str, template: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = template.replace("MARKER", str(marker))
    if kind == "gguf":
        model = write_gguf(tmp_path / "tiny.gguf", chat_template=text)
    else:
        model = save_tiny(tmp_path / "model")
        (model / "chat_template.jinja").write_text(text)
    engine = load(model)
    with pytest.raises(InputError, match="the tokenizer's chat template on these messages cannot be used"):
        engine.encode_chat([{"role": "user", "content": "hi"}])
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../outside", "/outside", "..", "a/b", ".hidden", ""])
def test_a_chat_template_is_not_saved_under_a_path(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    settings = read_json(folder / "tokenizer_config.json")
    templates = [{"name": "default", "template": "x"}, {"name": name, "template": "stranger"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": templates}))
    with pytest.raises(InputError, match="must name its chat templates by plain words"):
        load_tokenizer(resolve(folder))


@pytest.mark.parametrize("key", ["vocab", "merges", "vocab_file", "tokenizer_file"])
def test_no_file_of_another_folder_becomes_a_vocabulary(key: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n")
    secret = tmp_path / "secret"
    secret.write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nPASSWORD\n")
    settings = {"tokenizer_class": "BertTokenizer", key: str(secret)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if key.endswith("_file"):  # transformers takes the folder's own
        assert "PASSWORD" not in load_tokenizer(resolve(folder)).get_vocab()
    else:
        with pytest.raises(InputError, match="must not name a file"):
            load_tokenizer(resolve(folder))


def test_a_link_out_of_a_model_folder_is_not_copied(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (tmp_path / "secret.json").write_text('{"password": "1234"}')
    (tmp_path / "text.txt").write_text("some text to read, " * 20)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match=r"generation_config\.json must be a file of its own folder, it is a link"):
        sparsify(folder, tmp_path / "out", calibration=str(tmp_path / "text.txt"), num_samples=1, sequence_length=8)
    assert not list(tmp_path.glob("out*"))


def test_links_of_the_hubs_cache_are_copied(tmp_path: Path) -> None:
    blobs = save_tiny(tmp_path / "models--a--b" / "blobs")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    copy_configs(snapshot, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == (blobs / "config.json").read_bytes()
