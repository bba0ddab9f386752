"""Generated texts kept in a file batch by batch, so that an evaluation that was killed can resume."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shears.records.paths import file_fingerprint

logger = logging.getLogger(__name__)
SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files of a model or an adapter, beside its weights, that change generated texts."""


def journal_path(output: Path) -> Path:
    """Return the file that keeps the texts of an unfinished evaluation."""
    return output.with_name(f"{output.name}.partial")


def settings_fingerprint(*folders: Path) -> str:
    """Return the sha256 of all files that change the texts of a model and an adapter, except their weights."""
    return file_fingerprint(*(folder / name for folder in folders for name in SETTINGS if (folder / name).is_file()))


class Journal:
    """A file of JSON lines: first the evaluation's identity, then the numbers and texts of each complete batch.

    Texts of an evaluation with another identity are discarded, and so is a line that a kill cut off. Batches are kept
    whole, because a batch of other prompts would round otherwise.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = dict(identity)
        self._texts = self._read()

    def _read(self) -> dict[tuple[int, ...], list[str]]:
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
        contents = [content for content in map(_parsed, lines) if content is not None]
        if not contents or contents[0] != json.loads(json.dumps(self._identity)):
            if contents:
                logger.info("%s is of another evaluation: starting from the first batch", self.path)
            self._rewrite([])
            return {}
        batches = [content for content in contents[1:] if _is_batch(content)]
        self._rewrite(batches)
        logger.info("%s: resuming after %d batches", self.path, len(batches))
        return {tuple(batch["numbers"]): batch["texts"] for batch in batches}

    def _rewrite(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Write the file again without incomplete lines; through a second file, so that a kill here loses nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (self._identity, *batches)), encoding="utf-8")
        temporary.rename(self.path)

    def get(self, numbers: Sequence[int]) -> list[str] | None:
        """Return the texts of a batch, or None if it is not generated yet."""
        return self._texts.get(tuple(numbers))

    def put(self, numbers: Sequence[int], texts: Sequence[str]) -> None:
        """Append the texts of a batch; they are on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"numbers": list(numbers), "texts": list(texts)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Remove the file; call it when the output holds the texts."""
        self.path.unlink(missing_ok=True)


def _is_batch(content: Any) -> bool:
    """Return whether the content of a line is a batch: whole numbers with a text for each."""
    match content:
        case {"numbers": [*numbers], "texts": [*texts], **other}:
            typed = all(isinstance(number, int) for number in numbers) and all(isinstance(text, str) for text in texts)
            return typed and len(numbers) == len(texts) and not other
    return False


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):  # cut off, or no text
        return None
