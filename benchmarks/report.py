"""The parts that benchmarks share: a line on machine, versions and commit; the log on stderr; results files."""

import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from shears.records.timing import processor


def environment() -> str:
    """Return one line: processor, threads, versions, commit."""
    capability = torch.backends.cpu.get_cpu_capability()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    return (
        f"{processor()} ({capability}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}, commit {commit or 'unknown'}"
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file; an empty list if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a results file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def log_to_stderr() -> None:
    """Show the library's own log lines."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logger = logging.getLogger("shears")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())
