"""ONNX Runtime GenAI for benchmarks.rival; runs in another Python that has onnxruntime-genai, imports nothing of ours.

    PYTHON -m benchmarks.onnx_runtime_decode serve FOLDER THREADS
    PYTHON -m benchmarks.onnx_runtime_decode convert MODEL_FOLDER FOLDER

benchmarks.rival_process says what `serve` answers. `convert` lets the package's own builder round the weights and the
tied head to int4 in blocks of 32, by nearest, and the processor multiply them by 8-bit inputs (accuracy level 4, its
fastest); it also needs onnx, torch and transformers in that Python.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import onnxruntime_genai as og

from benchmarks.rival_process import LONGEST, serve


def main() -> None:
    """Run one of the commands."""
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve(Model(arguments[0], int(arguments[1])))
    else:
        convert(*arguments)


class Model:
    """A loaded folder and the cache of its texts."""

    def __init__(self, folder: str, threads: int) -> None:
        config = og.Config(folder)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self.about = f"onnxruntime-genai {og.__version__}"
        self.clear(1)

    def clear(self, texts: int) -> None:
        """Empty the cache."""
        settings = og.GeneratorParams(self._model)
        settings.set_search_options(max_length=LONGEST, do_sample=False, batch_size=texts)
        self._generator = og.Generator(self._model, settings)

    def read(self, tokens: list[list[int]]) -> Any:
        """Append tokens to every text; return the logits after the last ones."""
        self._generator.append_tokens(np.array(tokens, np.int32))
        return self._generator.get_logits()[:, -1]


def convert(source: str, target: str) -> None:
    """Write the folder of a model in int4."""
    options = ["accuracy_level=4", "block_size=32", "shared_embeddings=true"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", source, "-o", target]
    with tempfile.TemporaryDirectory() as cache:
        command = [*builder, "-p", "int4", "-e", "cpu", "-c", cache, "--extra_options", *options]
        subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
