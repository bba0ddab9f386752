"""What every benchmark says first: machine, versions, commit; and the log on stderr."""

import logging
import platform
import subprocess
from pathlib import Path

import peft
import torch
import transformers


def environment() -> str:
    """Return one line: processor, threads, versions, commit."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    return (
        f"{model or platform.processor()} ({capability}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}, commit {commit or 'unknown'}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def log_to_stderr() -> None:
    """Show the library's own log lines."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logger = logging.getLogger("shears")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())
