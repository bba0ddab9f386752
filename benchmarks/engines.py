"""Engines for benchmarks.rival, each in a process of a Python that has it; imports nothing of ours but for `shears`.

    PYTHON -m benchmarks.engines llama.cpp|ik_llama.cpp|OpenVINO|shears serve FILE THREADS
    PYTHON -m benchmarks.engines llama.cpp|ik_llama.cpp quantize MODEL.gguf OUTPUT.gguf KIND EMBEDDINGS IMPORTANCE.npz
    PYTHON -m benchmarks.engines llama.cpp resident MODEL.gguf
    PYTHON -m benchmarks.engines ik_llama.cpp dequantize MODEL.gguf OUTPUT.gguf
    PYTHON -m benchmarks.engines OpenVINO convert MODEL.gguf FOLDER

`serve` answers lines of stdin, {"tokens": [...], "new": N, "more": whether they follow those before, "texts": B}, by
{"seconds": wall time, "cpu": CPU time, "decoding": wall time after the tokens are read, "tokens": [...]}. It reads the
tokens as B texts at once and continues each greedily by N. `quantize` rounds the weights of any model; EMBEDDINGS is
the type of its embeddings, IMPORTANCE.npz a vector of a tensor's inputs by the tensor's name. `resident` prints the
bytes that the process holds after a short text. The wheel of ik-llama-cpp-python is built for AVX2; for AVX-512 build
the target `llama` of its source package with -DGGML_NATIVE=ON and put libggml.so and libllama.so into its `lib`.
"""

import ctypes
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LONGEST = 1024
"""Tokens of a text that is alone."""
MOST_TEXTS, SHORTEST = 16, 128
"""Texts at once, and the tokens that each can have."""


class Model(Protocol):
    """A loaded model and its cache."""

    about: str
    """What it says of its build and the processor."""

    def clear(self, texts: int) -> None:
        """Empty the cache, which then holds this many texts."""

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text, to all as many; return the logits after the last ones, a row a text."""


def serve(model: Model) -> None:
    """Answer the lines of stdin until it ends."""
    print(json.dumps({"ready": model.about}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, **json.loads(line))), flush=True)


def answer(model: Model, tokens: list[int], new: int, more: bool = False, texts: int = 1) -> dict[str, Any]:
    """Return the likeliest `new` tokens after some, those of the first text, and the times."""
    cpu = time.process_time()
    start = time.perf_counter()
    if not more:
        model.clear(texts)
    likeliest = model.read([tokens] * texts).argmax(1).tolist()
    is_read = time.perf_counter()
    found = likeliest[:1] if new else []
    while len(found) < new:
        likeliest = model.read([[token] for token in likeliest]).argmax(1).tolist()
        found.append(likeliest[0])
    end = time.perf_counter()
    times = {"seconds": end - start, "cpu": time.process_time() - cpu, "decoding": end - is_read}
    return {**times, "tokens": found}


class Llama:
    """A model in llama.cpp or ik_llama.cpp, whose C interfaces share what is used here, and the cache of its texts."""

    def __init__(self, engine: str, file: str, threads: int) -> None:
        self._is_ik = engine == "ik_llama.cpp"
        self._api = api = _ik_api() if self._is_ik else _llama_cpp()
        self._threads = threads
        self._texts = 1
        self._length = 0
        api.llama_backend_init()
        settings = api.llama_model_default_params()
        if self._is_ik:
            settings.repack_tensors = True  # for this processor
        self._model = api.llama_model_load_from_file(file.encode(), settings)
        if not self._model:
            raise RuntimeError(f"{engine} must load {file}")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._context = self._opened()
        self.about = str(api.llama_print_system_info().decode())

    def clear(self, texts: int) -> None:
        """Empty the cache, which then holds this many texts."""
        if texts != self._texts:
            self._api.llama_free(self._context)
            self._texts = texts
            self._context = self._opened()
        if self._is_ik:
            self._api.llama_kv_cache_clear(self._context)
        else:
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._length = 0

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones, a row a text."""
        count = len(tokens[0])
        batch = self._api.llama_batch_init(len(tokens) * count, 0, 1)
        batch.n_tokens = len(tokens) * count
        for text, each in enumerate(tokens):
            for place, token in enumerate(each):
                at = text * count + place
                batch.token[at] = token
                batch.pos[at] = self._length + place
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = text
                batch.logits[at] = place == count - 1
        if self._api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode must return 0")
        self._api.llama_batch_free(batch)
        self._length += count
        rows = [self._logits((text + 1) * count - 1) for text in range(len(tokens))]
        return np.stack(rows) if len(rows) > 1 else rows[0][None]

    def _opened(self) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = LONGEST if self._texts == 1 else self._texts * SHORTEST
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = self._texts
        settings.n_threads = settings.n_threads_batch = self._threads
        if self._is_ik:
            settings.flash_attn = self._texts == 1  # its fused attention stops at keys of another text
        return self._api.llama_init_from_model(self._model, settings)

    def _logits(self, at: int) -> Any:
        numbers = ctypes.cast(self._api.llama_get_logits_ith(self._context, at), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(numbers, (self._vocab_size,))


def _llama_cpp() -> Any:
    import llama_cpp

    global _quiet  # noqa: PLW0603  (the library keeps no reference to it)
    api: Any = llama_cpp
    _quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(_quiet, ctypes.c_void_p(0))
    return api


_quiet: Any = None


def _ik_api() -> Any:
    from ik_llama_cpp import _ctypes_api

    api: Any = _ctypes_api
    api._lib.llama_print_system_info.restype = ctypes.c_char_p
    api.llama_print_system_info = api._lib.llama_print_system_info
    return api


class OpenVINO:
    """A model that OpenVINO compiled, and the state of its texts; it chooses its own number formats."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled: Any = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", settings)
        self._request = compiled.create_infer_request()
        self._length = 0
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.about = f"OpenVINO {openvino.__version__}, {precision}"

    def clear(self, texts: int) -> None:
        """Empty the cache."""
        self._request.reset_state()
        self._length = 0

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones."""
        count = len(tokens)
        start = self._length
        self._length += len(tokens[0])
        self._request.infer({
            "input_ids": np.array(tokens, np.int64),
            "attention_mask": np.ones((count, self._length), np.int64),
            "position_ids": np.tile(np.arange(start, self._length, dtype=np.int64), (count, 1)),
            "beam_idx": np.arange(count, dtype=np.int32),
        })  # fmt: skip
        return self._request.get_tensor("logits").data[:, -1]


class Native:
    """A package in our native decoder, and the cache of its texts."""

    def __init__(self, package: Path, threads: int) -> None:
        from shears.checkpoints.package_file import read_package
        from shears.runtime.native.decoder import NativeBackend
        from shears.runtime.native.model_source import source_of_package

        source = source_of_package(read_package(package))
        self._backend = NativeBackend(source, threads, max_length=LONGEST, max_sequences=MOST_TEXTS)
        self.about = str(self._backend.describe()["isa"])

    def clear(self, texts: int) -> None:
        """Empty the cache."""
        for text in range(MOST_TEXTS):
            self._backend.drop(text)

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones."""
        if len(tokens[0]) == 1:
            return self._backend.step(range(len(tokens)), [token for (token,) in tokens])
        return np.stack([self._backend.prefill(text, each) for text, each in enumerate(tokens)])


def quantize(engine: str, source: str, target: str, kind: str, embeddings: str, importance: str) -> None:
    """Write a quantized model."""
    vectors = np.load(importance)
    if engine == "ik_llama.cpp":
        with tempfile.NamedTemporaryFile(suffix=".dat") as matrix:
            matrix.write(importance_file(vectors))
            matrix.flush()
            outside = ["--token-embedding-type", embeddings, "--output-tensor-type", embeddings]
            _ik_quantize("--imatrix", matrix.name, *outside, source, target, kind.upper())
        return
    api = _llama_cpp()
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.allow_requantize = True
    settings.token_embedding_type = settings.output_tensor_type = getattr(api, f"GGML_TYPE_{embeddings.upper()}")
    array = (api.llama_model_imatrix_data * (len(vectors.files) + 1))()  # ends with one without a name
    for entry, name in zip(array, vectors.files, strict=False):
        vector = np.ascontiguousarray(vectors[name], np.float32)
        entry.name = name.encode()
        entry.size = vector.size
        entry.data = (ctypes.c_float * vector.size)(*vector)
    settings.imatrix = array
    if api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)):
        raise RuntimeError("llama_model_quantize must return 0")


def importance_file(vectors: Any) -> bytes:
    """Return the importance matrix as ik_llama.cpp reads it: a count, then name, calls and values of each vector.

    One call, so that nothing is divided.
    """
    parts = [struct.pack("<i", len(vectors.files))]
    for name in vectors.files:
        values = vectors[name].astype("<f4")
        letters = name.encode()
        parts += [struct.pack("<i", len(letters)), letters, struct.pack("<ii", 1, values.size), values.tobytes()]
    return b"".join(parts)


def _ik_quantize(*words: str) -> None:
    """Run ik_llama.cpp's own program, in one thread."""
    import ik_llama_cpp

    program = Path(ik_llama_cpp.__file__).parent / "bin" / "llama-quantize"
    subprocess.run([str(program), *words, "1"], check=True, stdout=sys.stderr)


def convert(source: Path, target: Path) -> None:
    """Write the model that OpenVINO GenAI makes of a .gguf file: the same four-bit weights."""
    import openvino_genai

    target.mkdir(parents=True)
    link = target / "model.gguf"
    link.symlink_to(source.resolve())
    openvino_genai.LLMPipeline(link, "CPU", enable_save_ov_model=True)
    link.unlink()


def resident(file: str) -> int:
    """Return the resident bytes of this process after a text of 16 + 8 tokens in llama.cpp."""
    answer(Llama("llama.cpp", file, 1), list(range(16)), 8)
    fields = Path("/proc/self/status").read_text(encoding="ascii").split()
    return 1024 * int(fields[fields.index("VmRSS:") + 1])


def main() -> None:
    """Run one of the commands."""
    engine, command, *words = sys.argv[1:]
    if command == "serve" and engine in ("llama.cpp", "ik_llama.cpp"):
        serve(Llama(engine, words[0], int(words[1])))
    elif command == "serve":
        serve((OpenVINO if engine == "OpenVINO" else Native)(Path(words[0]), int(words[1])))
    elif command == "quantize":
        quantize(engine, *words)
    elif command == "dequantize":
        _ik_quantize("--allow-requantize", *words, "F16")
    elif command == "convert":
        convert(Path(words[0]), Path(words[1]))
    else:
        print(resident(words[0]))


if __name__ == "__main__":
    main()
