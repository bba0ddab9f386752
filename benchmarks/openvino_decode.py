"""OpenVINO for benchmarks.rival; runs in another Python that has openvino-genai, and imports nothing of ours.

    PYTHON -m benchmarks.openvino_decode convert MODEL.gguf FOLDER
    PYTHON -m benchmarks.openvino_decode serve FOLDER THREADS

`convert` writes the model that OpenVINO GenAI makes of a .gguf file: the same four-bit weights.
benchmarks.rival_process says what `serve` answers. OpenVINO chooses its own number formats: on a CPU bf16 where there
is hardware for it, and inputs and cache in 8 bits.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from benchmarks.rival_process import serve

GGUF = "model.gguf"
MODEL = "openvino_model.xml"


def main() -> None:
    """Run one of the commands."""
    command, first, second = sys.argv[1:]
    if command == "serve":
        serve(Model(Path(first), int(second)))
    else:
        convert(Path(first), Path(second))


def convert(source: Path, target: Path) -> None:
    """Write OpenVINO's model of a .gguf file to a folder."""
    target.mkdir(parents=True)
    link = target / GGUF
    link.symlink_to(source.resolve())
    openvino_genai.LLMPipeline(link, "CPU", enable_save_ov_model=True)
    link.unlink()


class Model:
    """A compiled model and the state of its texts."""

    def __init__(self, folder: Path, threads: int) -> None:
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled: Any = openvino.Core().compile_model(folder / MODEL, "CPU", settings)
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
        start, self._length = self._length, self._length + len(tokens[0])
        self._request.infer({
            "input_ids": np.array(tokens, np.int64),
            "attention_mask": np.ones((count, self._length), np.int64),
            "position_ids": np.tile(np.arange(start, self._length, dtype=np.int64), (count, 1)),
            "beam_idx": np.arange(count, dtype=np.int32),
        })  # fmt: skip
        return self._request.get_tensor("logits").data[:, -1]


if __name__ == "__main__":
    main()
