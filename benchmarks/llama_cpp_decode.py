"""llama.cpp for benchmarks.rival; runs in another Python that has llama-cpp-python, and imports nothing of ours.

    PYTHON llama_cpp_decode.py serve MODEL.gguf THREADS
    PYTHON llama_cpp_decode.py resident MODEL.gguf
    PYTHON llama_cpp_decode.py quantize MODEL.gguf OUTPUT.gguf q8_0|q4_0|q4_k_m|... [EMBEDDINGS [IMPORTANCE.npz]]

`serve` reads lines of JSON, {"tokens": [...], "new": N, "more": whether they follow those before}, and answers
{"seconds": wall time, "cpu": CPU time, "tokens": [...]}: it clears the cache unless there is more, reads the tokens,
and continues them greedily by N tokens with llama.cpp's own sampler. N = 0 only reads. `resident` prints the bytes that
the process holds after a short text. `quantize` also takes a model that is quantized: its weights are rounded once
more. EMBEDDINGS is their type, such as q4_0; IMPORTANCE.npz holds a vector of a tensor's inputs by the tensor's name,
the importance matrix.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as _llama_cpp
import numpy as np

llama_cpp: Any = _llama_cpp  # untyped


def main() -> None:
    """Run one of the commands."""
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve(arguments[0], int(arguments[1]))
    elif command == "resident":
        print(resident(arguments[0]))
    else:
        quantize(*arguments)


def serve(model_file: str, threads: int) -> None:
    """Answer the lines of stdin."""
    context, sampler = opened(model_file, threads)
    print(json.dumps({"ready": llama_cpp.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        cpu = time.process_time()
        if not request.get("more"):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        tokens = _continued(context, sampler, request["tokens"], request["new"])
        timing = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        print(json.dumps({**timing, "tokens": tokens}), flush=True)


def resident(model_file: str) -> int:
    """Return the resident bytes of this process after a text of 16 + 8 tokens."""
    context, sampler = opened(model_file, 1)
    _continued(context, sampler, list(range(16)), 8)
    with open("/proc/self/status", encoding="ascii") as status:
        fields = status.read().split()
    return 1024 * int(fields[fields.index("VmRSS:") + 1])


def opened(model_file: str, threads: int) -> tuple[Any, Any]:
    """Return a context of a model, and a greedy sampler."""
    opened.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # type: ignore[attr-defined]  # kept alive
    llama_cpp.llama_log_set(opened.quiet, ctypes.c_void_p(0))  # type: ignore[attr-defined]
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(model_file.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = 1024
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = threads
    return llama_cpp.llama_init_from_model(model, settings), llama_cpp.llama_sampler_init_greedy()


def _continued(context: Any, sampler: Any, prompt: list[int], new: int) -> list[int]:
    tokens: list[int] = []
    piece = (llama_cpp.llama_token * len(prompt))(*prompt)
    single = (llama_cpp.llama_token * 1)()
    _decode(context, piece, len(prompt))
    while len(tokens) < new:
        tokens.append(llama_cpp.llama_sampler_sample(sampler, context, -1))
        if len(tokens) < new:
            single[0] = tokens[-1]
            _decode(context, single, 1)
    return tokens


def _decode(context: Any, tokens: Any, count: int) -> None:
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
        raise RuntimeError("llama_decode must return 0")


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
