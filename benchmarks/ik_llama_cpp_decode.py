"""ik_llama.cpp for benchmarks.rival; runs in another Python that has ik-llama-cpp-python, and imports nothing of ours.

    PYTHON -m benchmarks.ik_llama_cpp_decode serve MODEL.gguf THREADS
    PYTHON -m benchmarks.ik_llama_cpp_decode quantize MODEL.gguf OUTPUT.gguf iq4_k|iq4_ks|... EMBEDDINGS IMPORTANCE.npz
    PYTHON -m benchmarks.ik_llama_cpp_decode dequantize MODEL.gguf OUTPUT.gguf

benchmarks.rival_process says what `serve` answers; the arguments of `quantize` are those of llama_cpp_decode. The
weights are repacked for the processor when they are loaded; attention of a text that is alone is the fused one. The
wheel on PyPI is built for AVX2. For AVX-512 build the target `llama` of its source package (0.1.5 lacks a file that the
others need) with -DGGML_NATIVE=ON, and put libggml.so and libllama.so into the installed `ik_llama_cpp/lib`; `serve`
says what the build uses.
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ik_llama_cpp
import numpy as np
from ik_llama_cpp import _ctypes_api as _api

from benchmarks.llama_cpp_reader import Reader
from benchmarks.rival_process import importance_file, serve

api: Any = _api  # untyped


def main() -> None:
    """Run one of the commands."""
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve(Model(arguments[0], int(arguments[1])))
    elif command == "quantize":
        quantize(*arguments)
    else:
        _quantize_by("--allow-requantize", *arguments, "F16")


class Model(Reader):
    """A loaded file and the cache of its texts."""

    def __init__(self, file: str, threads: int) -> None:
        library = api._lib
        library.llama_print_system_info.restype = ctypes.c_char_p
        api.llama_backend_init()
        settings = api.llama_model_default_params()
        settings.repack_tensors = True
        model = api.llama_model_load_from_file(file.encode(), settings)
        if not model:
            raise RuntimeError(f"ik_llama.cpp must load {file}")
        super().__init__(api, model, threads)
        self.about = library.llama_print_system_info().decode()

    def _settings(self) -> Any:
        settings = super()._settings()
        settings.flash_attn = self._texts == 1  # the fused attention stops at keys of another text
        return settings

    def _empty(self) -> None:
        api.llama_kv_cache_clear(self._context)


def quantize(source: str, target: str, kind: str, embeddings: str, importance: str) -> None:
    """Write a quantized model."""
    with tempfile.NamedTemporaryFile(suffix=".dat") as matrix:
        matrix.write(importance_file(np.load(importance)))
        matrix.flush()
        outside = ["--token-embedding-type", embeddings, "--output-tensor-type", embeddings]
        _quantize_by("--imatrix", matrix.name, *outside, source, target, kind.upper())


def _quantize_by(*words: str) -> None:
    """Run the package's own program, in one thread."""
    program = Path(ik_llama_cpp.__file__).parent / "bin" / "llama-quantize"
    subprocess.run([str(program), *words, "1"], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
