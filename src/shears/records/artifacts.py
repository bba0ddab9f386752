"""The contract between stages: finished folders say what they were made from, and are checked when read.

Each holds one record, a JSON file, with the stage's configuration and the fingerprints of its inputs and of its
weights. How they come to be is in `folders`.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shears.config.fields import StageConfig
from shears.errors import InputError
from shears.records.paths import file_fingerprint

logger = logging.getLogger(__name__)

SPARSITY, SEARCH_SPACE, RESULT, SUB_ADAPTER = "sparsity.json", "search_space.json", "result.json", "sub_adapter.json"
EVALUATION, RECOVERY, MERGED, PACKAGE = "evaluation.json", "recovery.json", "merged.json", "package.json"
UNPACKED = "unpacked.json"
RECIPE, REPORT, README, BENCH = "recipe.yaml", "report.html", "README.md", "bench.json"  # in a run's folder
RECORDS = (PACKAGE, SPARSITY, SEARCH_SPACE, RESULT, SUB_ADAPTER, RECOVERY, MERGED, UNPACKED, EVALUATION)
TRAINED_BEFORE = "trained_before"  # of a record: data and hashes of the trainings that were merged into its base
TRAINING_LOG = "training_log.jsonl"
TRAINING_TIMES = "training_times.jsonl"  # apart from the log, which is the same whenever it is made
RECOVERY_FOLDER = "recovery"  # inside a sparse model's folder
KINDS = {
    SPARSITY: "a sparse model", SEARCH_SPACE: "a super-adapter", SUB_ADAPTER: "a sub-adapter", RECOVERY: "a recovery",
    MERGED: "a merged model", PACKAGE: "a package", UNPACKED: "an unpacked model",
}  # fmt: skip
FIELDS: Mapping[str, type | tuple[type, ...]] = {  # of records, which whoever reads one takes for granted
    "base": str, "template": str, "config": dict, "ranks": dict, "linears": dict, "bytes": dict,
    "ratio": dict, "alpha": (int, float), "max_rank": int,
}  # fmt: skip

GROUP = re.compile(r"[^.]+\.\d{1,9}\..+", re.ASCII)  # what has a rank of its own, such as layers.0.up_proj


def write_json(path: Path, content: object) -> None:
    """Write JSON so that at any moment the old file or the whole new one is there; ValueError for nan and infinity."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text through a temporary sibling, fsync and rename; a failure, such as a full disk, leaves no sibling."""
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
    """Return the content of a JSON file; InputError where it is missing, torn or beyond what Python reads."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} must exist; it does not") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must be a JSON file, got {error}; make it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; InputError where it holds another thing."""
    content: Any = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a JSON object, got {str(content)[:40]}; make it again")
    return content


def record_in(path: Path) -> dict[str, Any]:
    """Return the record in a file, its weights not looked at; InputError where one of FIELDS is another thing."""
    record = read_object(path)
    wrong = [key for key, kind in FIELDS.items() if key in record and not isinstance(record[key], kind)]
    if not wrong:
        ranks = record.get("ranks", {})
        wrong = ["ranks"] * any(not GROUP.fullmatch(name) or type(rank) is not int for name, rank in ranks.items())
    if wrong:
        shown = str(record[wrong[0]])[:40]
        raise InputError(f"{path} must be a record of shears, its {wrong[0]} is {shown}; make the folder again")
    return record


def sync_path(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        sync_path(path)


def refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError naming every key in which what made `folder` differs from what is asked now."""
    changes = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changes:
        todo = "Ask for what it was, delete it, or choose another output"
        raise InputError(f"{folder} was made otherwise: {'; '.join(changes)}. {todo}")


def as_data(config: StageConfig) -> dict[str, Any]:
    """Return a stage's configuration as plain JSON data."""
    return config.model_dump(mode="json")


def weights_fingerprint(folder: Path) -> str:
    """Return sha256 over a folder's safetensors files, in the order of their names.

    InputError where there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} must hold weights as safetensors; it holds none")
    return file_fingerprint(*files)


def evaluation_file(run: Path, name: str) -> Path:
    """Return where a run keeps the measurement of one of its models: `sparse + sub-adapter`, for example."""
    return run / "evaluation" / f"{name.replace(' + ', '_').replace('-', '_')}.json"


def find_record(folder: Path) -> Path | None:
    """Return the record that says what a finished folder is, or None."""
    return next((folder / name for name in RECORDS if (folder / name).is_file()), None)


def read_record(folder: Path, name: str, fingerprint: str | None = None) -> dict[str, Any]:
    """Return the record of a finished artifact; InputError if the folder is another thing or its weights changed.

    `fingerprint` is that of the weights where the caller has computed it before.
    """
    if not (folder / name).is_file():
        raise InputError(
            f"{folder} must be {KINDS.get(name, 'an artifact')} (a folder with {name}); it has no such file"
        )
    record = record_in(folder / name)
    if "fingerprint" in record and (actual := fingerprint or weights_fingerprint(folder)) != record["fingerprint"]:
        raise InputError(
            f"the weights in {folder} must be those of {name} ({str(record['fingerprint'])[:12]}), got {actual[:12]}; "
            "make it again"
        )
    return record


def whole_record(folder: Path, name: str, *needed: str) -> dict[str, Any]:
    """Return the record of an artifact as `read_record` does; InputError also where it lacks what is needed of it."""
    content = read_json(folder / name) if (folder / name).is_file() else dict.fromkeys(needed)
    if not isinstance(content, dict) or (lacking := [key for key in needed if key not in content]):
        what = f"it lacks {', '.join(lacking)}" if isinstance(content, dict) else f"it is {str(content)[:40]}"
        raise InputError(f"{folder / name} must be the record that shears wrote, {what}; make the folder again")
    return read_record(folder, name)


def training_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data, and their hash, that the adapter of a record was trained on: of a super-adapter as asked for."""
    config = record.get("config")
    asked = config.get("data") if isinstance(config, dict) else None
    return {"data": record.get("data") or asked, "data_sha256": record.get("data_sha256")}


def training_sources(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all data that stand behind an artifact: what its base had been trained on, then what its adapter was."""
    before, own = record.get(TRAINED_BEFORE), training_source(record)
    earlier = [each for each in before if isinstance(each, dict)] if isinstance(before, list) else []
    return [source for source in (*earlier, own) if source.get("data")]


def inherited(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of a model's training in records of artifacts made from it; empty where it had none."""
    sources = training_sources(record)
    template = {"template": record["template"]} if "template" in record else {}
    return {**template, TRAINED_BEFORE: sources} if sources else {}


def check_input(what: str, expected: object, found: str) -> None:
    """Raise InputError naming both fingerprints where an artifact does not fit what it was made for.

    What is expected stands in a record, and may be anything.
    """
    if expected != found:
        raise InputError(f"{what} must be the one this was made from ({str(expected)[:12]}), got {found[:12]}")
