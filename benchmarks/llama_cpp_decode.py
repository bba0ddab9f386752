"""llama.cpp for benchmarks.rival; runs in another Python that has llama-cpp-python, and imports nothing of ours.

    PYTHON -m benchmarks.llama_cpp_decode serve MODEL.gguf THREADS
    PYTHON -m benchmarks.llama_cpp_decode resident MODEL.gguf
    PYTHON -m benchmarks.llama_cpp_decode quantize MODEL.gguf OUTPUT.gguf q8_0|q4_0|... [EMBEDDINGS [IMPORTANCE.npz]]

benchmarks.rival_process says what `serve` answers. `resident` prints the bytes that
the process holds after a short text. `quantize` also takes a model that is quantized: its weights are rounded once
more. EMBEDDINGS is their type, such as q4_0; IMPORTANCE.npz holds a vector of a tensor's inputs by the tensor's name,
the importance matrix.
"""

import ctypes
import sys
from typing import Any

import llama_cpp as _llama_cpp
import numpy as np

from benchmarks.llama_cpp_reader import Reader
from benchmarks.rival_process import answer, serve

llama_cpp: Any = _llama_cpp  # untyped


def main() -> None:
    """Run one of the commands."""
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve(Model(arguments[0], int(arguments[1])))
    elif command == "resident":
        print(resident(arguments[0]))
    else:
        quantize(*arguments)


def resident(model_file: str) -> int:
    """Return the resident bytes of this process after a text of 16 + 8 tokens."""
    answer(Model(model_file, 1), list(range(16)), 8)
    with open("/proc/self/status", encoding="ascii") as status:
        fields = status.read().split()
    return 1024 * int(fields[fields.index("VmRSS:") + 1])


class Model(Reader):
    """A loaded file and the cache of its texts, each with cells of its own."""

    def __init__(self, file: str, threads: int) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept alive
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        super().__init__(llama_cpp, model, threads)
        self.about = str(llama_cpp.llama_print_system_info().decode())

    def _empty(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)


def quantize(source: str, target: str, kind: str, embeddings: str = "", importance: str = "") -> None:
    """Write a quantized model."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.allow_requantize = True
    if embeddings:
        kind_outside = getattr(llama_cpp, f"GGML_TYPE_{embeddings.upper()}")
        settings.token_embedding_type = settings.output_tensor_type = kind_outside
    if importance:
        settings.imatrix = _imatrix(np.load(importance))
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)):
        raise RuntimeError("llama_model_quantize must return 0")


def _imatrix(vectors: Any) -> Any:
    """Return llama.cpp's array of named vectors, which ends with one without a name and keeps the vectors alive."""
    array = (llama_cpp.llama_model_imatrix_data * (len(vectors.files) + 1))()
    for entry, name in zip(array, vectors.files, strict=False):
        vector = np.ascontiguousarray(vectors[name], np.float32)
        entry.name = name.encode()
        entry.size = vector.size
        entry.data = (ctypes.c_float * vector.size)(*vector)
    return array


if __name__ == "__main__":
    main()
