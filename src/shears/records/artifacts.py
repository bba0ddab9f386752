"""The contract between stages: records and journals, and the checks when they are read.

A record is a JSON file with the configuration of the stage that made a folder, and the
fingerprints of its inputs and of its weights. A journal is a JSONL file that grows row by row and
survives a kill at any byte. `folders.py` makes the folders.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shears.config.export_options import FORMAT_OF_RECORD, FORMATS
from shears.config.fields import StageConfig
from shears.errors import InputError, reading
from shears.records.paths import file_fingerprint

__version__ = "0.1.0"  # every record names it
SPARSITY = "sparsity.json"
HEALED = "heal.json"
SEARCH_SPACE = "search_space.json"
RESULT = "result.json"
SUB_ADAPTER = FORMATS["peft"].record
EVALUATION = "evaluation.json"
RECOVERY = "recovery.json"
PACKAGE = FORMATS["package"].record
GGUF = FORMATS["gguf"].record
GGUF_FILE = "model.gguf"  # beside that record
WRITTEN_TEXT = "self_text.json"
RECIPE = "recipe.yaml"  # this and the next three lie in a run's folder
REPORT = "report.html"
README = "README.md"
COMPRESS = "compress.json"  # in the folder of `compress`, beside the folders of its runs
RECORDS = (SPARSITY, HEALED, SEARCH_SPACE, RESULT, *FORMAT_OF_RECORD, RECOVERY, EVALUATION)
FORM = "form"  # key of a record: the form of the rows of its training (data/forms.py)
TRAINED_BEFORE = "trained_before"  # key of a record: the trainings that were merged into its base
TRAINING_LOG = "training_log.jsonl"
TRAINING_TIMES = "training_times.jsonl"  # not in the log: equal trainings write equal logs
RECOVERY_FOLDER = "recovery"  # inside a sparse model's folder
KINDS = {
    SPARSITY: "sparse model", HEALED: "healed model", SEARCH_SPACE: "super-adapter",
    RECOVERY: "recovery", **{record: form.called for record, form in FORMAT_OF_RECORD.items()},
}  # fmt: skip
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "base": str, "template": str, "form": dict, TRAINED_BEFORE: list, "config": dict, "ranks": dict,
    "columns": dict, "linears": dict, "bytes": dict, "ratio": dict, "alpha": (int, float), "max_rank": int,
}  # fmt: skip
"""The types of keys in records; `record_in` checks them, so that readers can rely on them."""


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text so that a reader finds the old text or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def read_json(path: Path) -> Any:
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; InputError for any other content."""
    if not isinstance(content := read_json(path), dict):
        raise InputError(f"{path} must be a JSON object, got {str(content)[:40]}; make it again")
    return content


def record_in(path: Path) -> dict[str, Any]:
    """Return the record in a file, weights unverified; InputError where a key has a wrong type."""
    record = read_object(path)
    for key, kind in FIELDS.items():
        if key in record and not isinstance(record[key], kind):
            raise InputError(f"{path} must be as shears wrote it, its {key} is {str(record[key])[:40]}")
    return record


def sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    for path in [*sorted(folder.rglob("*")), folder]:
        sync_path(path)


def _shown(value: Any) -> str:
    return "the default" if value is None else repr(value)


def refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError, naming every key that differs, for another configuration of `folder`."""
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {_shown(before.get(key))} and is now {_shown(now.get(key))}" for key in keys)
        todo = "Use the earlier configuration, delete the folder, or choose another output"
        raise InputError(f"{folder} was made with a different configuration: {changes}. {todo}")


def read_rows(path: Path) -> list[Any]:
    """Return the rows of a journal without lines that are not JSON; an absent file has no rows."""
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        with suppress(ValueError, RecursionError):  # a full disk may leave such a line
            rows.append(json.loads(line.decode()))
    return rows


def append_row(path: Path, row: object) -> None:
    """Append a row after cutting off a torn last line; the row is on the disk when this returns."""
    if path.is_file():
        cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(row)}\n")
        file.flush()
        os.fsync(file.fileno())


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """Replace a journal by these rows; a kill leaves the old file or the new one."""
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def as_data(config: StageConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def weights_fingerprint(folder: Path) -> str:
    """Return the sha256 of a folder's safetensors files ordered by name; InputError without any."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} must hold weights as safetensors, it holds none")
    return file_fingerprint(*files)


def evaluation_file(run: Path, name: str) -> Path:
    """Return the file of a run with the figures of a model, such as `sparse + sub-adapter`."""
    return run / "evaluation" / f"{name.replace(' + ', '_').replace('-', '_')}.json"


def baseline_folder(run: Path, name: str) -> Path:
    """Return the folder of a run with the adapter of a baseline, such as `dense-lora`."""
    return run / "baselines" / name.replace("-", "_")


def find_record(folder: Path) -> Path | None:
    return next((folder / name for name in RECORDS if (folder / name).is_file()), None)


def read_record(folder: Path, name: str, *needed: str, fingerprint: str | None = None) -> dict[str, Any]:
    """Return the record of a finished artifact after a check of its weights and `needed` keys.

    `fingerprint` is that of the weights if the caller has computed it.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(
            f"{folder} must be a {KINDS.get(name, 'artifact')} (a folder with {name}), it has no such file"
        )
    record = record_in(path)
    if lacking := [key for key in needed if key not in record]:
        raise InputError(f"{path} must be as shears wrote it, it lacks {', '.join(lacking)}")
    recorded = record.get("fingerprint")
    if "fingerprint" in record and (actual := fingerprint or weights_fingerprint(folder)) != recorded:
        was = f"must be those of {name} ({str(recorded)[:12]})"
        raise InputError(f"the weights in {folder} {was}, got {actual[:12]}; make it again")
    return record


def training_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a record's training, their hash, and the columns that were named."""
    config = record.get("config") or {}  # a super-adapter has no keys of its own
    columns = record.get("columns") or (config.get("columns") if "data" in config else None)
    source = {"data": record.get("data") or config.get("data"), "data_sha256": record.get("data_sha256")}
    return {**source, "columns": columns} if columns else source


def training_sources(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all data that an artifact was trained on: those of its base, then of its adapter."""
    sources = [*record.get(TRAINED_BEFORE, ()), training_source(record)]
    return [source for source in sources if source.get("data")]


def inherited(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys on training that artifacts take over from the record of their model."""
    sources = training_sources(record)
    return {**form_keys(record), TRAINED_BEFORE: sources} if sources else {}


def form_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("template", FORM) if key in record}


def check_input(what: str, expected: object, actual: str) -> None:
    if expected != actual:
        raise InputError(f"{what} must be the one this was made from ({str(expected)[:12]}), got {actual[:12]}")
