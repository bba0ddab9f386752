"""Generated texts kept batch by batch beside the output, so that an evaluation that was killed goes on where it was."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shears.records.paths import file_fingerprint

logger = logging.getLogger(__name__)
SETTINGS = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Files of a model and an adapter that change its texts, as weights do: where these end, say."""


def journal_path(output: Path) -> Path:
    """Return where the texts of an unfinished evaluation stand."""
    return output.with_name(f"{output.name}.partial")


def settings_fingerprint(*folders: Path) -> str:
    """Return sha256 of what a model and an adapter have beside their weights."""
    return file_fingerprint(*(folder / name for folder in folders for name in SETTINGS if (folder / name).is_file()))


class Journal:
    """A file of JSON lines: first what was asked, then each whole batch's numbers and texts, flushed one by one.

    Texts of another evaluation (`asked` differs) are thrown away, and so is a line that a kill cut off: batches are
    taken again whole, so that the answers have the bits of an undisturbed run.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path, self._asked = path, dict(asked)
        self._done = self._read()

    def _read(self) -> dict[tuple[int, ...], list[str]]:
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
        whole = [content for content in map(_parsed, lines) if content is not None]
        if not whole or whole[0] != json.loads(json.dumps(self._asked)):
            if whole:
                logger.info("%s is of another evaluation: starting anew", self.path)
            self._rewrite([])
            return {}
        batches = [content for content in whole[1:] if _is_batch(content)]
        self._rewrite(batches)
        logger.info("%s: %d batches are there, going on", self.path, len(batches))
        return {tuple(batch["numbers"]): batch["texts"] for batch in batches}

    def _rewrite(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Write the file anew without what is torn; through a sibling, so that a kill in here loses nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sibling = self.path.with_name(f".{self.path.name}.tmp")
        sibling.write_text("".join(json.dumps(line) + "\n" for line in (self._asked, *batches)), encoding="utf-8")
        sibling.rename(self.path)

    def get(self, numbers: Sequence[int]) -> list[str] | None:
        """Return the texts of a batch, or None where it is still to be generated."""
        return self._done.get(tuple(numbers))

    def put(self, numbers: Sequence[int], texts: Sequence[str]) -> None:
        """Keep the texts of a batch, on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"numbers": list(numbers), "texts": list(texts)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Remove the file: its texts are in the output now."""
        self.path.unlink(missing_ok=True)


def _is_batch(content: Any) -> bool:
    """Tell numbers with a text each from whatever else may stand in a line."""
    if not isinstance(content, dict) or content.keys() != {"numbers", "texts"}:
        return False
    numbers, texts = content["numbers"], content["texts"]
    if not isinstance(numbers, list) or not isinstance(texts, list) or len(numbers) != len(texts):
        return False
    return all(isinstance(number, int) for number in numbers) and all(isinstance(text, str) for text in texts)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):  # torn, or no text at all
        return None
