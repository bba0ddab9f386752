"""The one line for a lack of memory: what happened, and the options of the verb that help."""

import re
from collections.abc import Mapping, Sequence

ADVICE: Mapping[str, tuple[str, ...]] = {
    "write": ("batch_size=4", "max_new_tokens=128", "precision=bf16"),
    "sparsify": ("batch_size=1", "activation_budget=500MB", "sequence_length=256"),
    "train": ("micro_batch_size=1", "gradient_checkpointing=true", "quantize=nf4"),
    "heal": ("micro_batch_size=1", "train=lora", "sequence_length=256"),
    "search": ("batch_size=4", "cache_budget=0", "precision=bf16"),
    "export": ("num_samples=16", "sequence_length=256", "device=cpu"),
    "evaluate": ("batch_size=4", "precision=bf16", "num_beams=1"),
    "generate": ("dtype=bf16", "max_new_tokens=64", "device=cpu"),
    "chat": ("dtype=bf16", "max_new_tokens=64", "device=cpu"),
    "serve": ("dtype=bf16", "max_new_tokens=256", "device=cpu"),
    "bench": ("prompt_tokens=128", "new_tokens=16", "rounds=1"),
}
"""Settings that need less memory, by verb, the ones that cost least first."""


def memory_line(error: BaseException, verb: str, stage: str | None, words: Sequence[str]) -> str:
    """Return the message; `stage` is the one of a run that needed the memory, `words` are the call's, not advised."""
    text = str(error)
    kind = "GPU memory" if re.search("CUDA|GPU|HIP|MPS|CUBLAS", text) else "memory"
    size = _size(text)
    section = stage or verb
    settings = [
        _as_flag(setting) if stage is None else f"--set {stage}.{setting}" for setting in ADVICE.get(section, ())
    ]
    given = " ".join(words)
    useful = [setting for setting in settings if setting not in given]
    what = f"{section} needs more {kind} than there is{f' ({size} more)' if size else ''}"
    if not useful:
        return f"{what}; take a smaller model or a machine with more memory"
    return f"{what}; {' or '.join(filter(None, [', '.join(useful[:-1]), useful[-1]]))} needs less"


def _size(text: str) -> str:
    """Return how much memory could not be had, as torch says it, with the bytes of its CPU messages as GB."""
    match = re.search(r"[Tt]ried to allocate (\d+(?:\.\d+)?) ?([KMGT]?i?B|bytes)", text)
    if match is None:
        return ""
    return f"{float(match[1]) / 10**9:.1f} GB" if match[2] == "bytes" else f"{match[1]} {match[2]}"


def _as_flag(setting: str) -> str:
    """Return a setting such as batch_size=4 as words of a call."""
    name, _, value = setting.partition("=")
    return f"--{name.replace('_', '-')}" + ("" if value == "true" else f" {value}")
