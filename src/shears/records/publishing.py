"""The card of an artifact, and its upload to the hub.

The same record gives the same card; its text stands in card.md. On the hub, hub ids take the places
of folders of this machine.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from jinja2 import Environment, Template

from shears.config.export_options import FORMAT_OF_RECORD
from shears.config.sparsify_options import EMBEDDED
from shears.errors import DISTRIBUTION, InputError, option, reading
from shears.records import artifacts, paths
from shears.records.figures import model_rows, ranks_by_kind, ranks_of, remarks
from shears.records.folders import PARTIAL

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]
ACTIVE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\"'`$<>;|&\\]")  # people copy commands
FOLDERS = {  # names in a run, and titles
    artifacts.SPARSITY: ("sparse", "{}, sparse"),
    artifacts.HEALED: ("healed", "{}, pruned and healed"),
    artifacts.SEARCH_SPACE: ("super_adapter", "LoRA super-adapter for {}"),
    artifacts.RECOVERY: ("sparse/recovery", "LoRA recovery for {}"),
    **{record: (form.folder, form.title) for record, form in FORMAT_OF_RECORD.items()},
}
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for --max-lora-rank
EXCLUDED = re.compile(
    r"study\.journal|training_times\.jsonl|checkpoint-\d+|(?:optimizer|scheduler|scaler)\.(?:pt|bin)"
    r"|rng_state\S*\.pth|training_args\.bin|trainer_state\.json|events\.out\.tfevents\.\S+"
)
"""Files with times, and those of transformers' Trainer, which contain paths of this machine."""
BASE_KEYS = {
    paths.ADAPTER_CONFIG: "base_model_name_or_path",
    **dict.fromkeys(artifacts.RECORDS, "base"),
    artifacts.SPARSITY: "model",
    artifacts.HEALED: "model",
}
"""Files that name the model an artifact was made from, and the key of that name."""
SOURCES = frozenset(
    ("data", "calibration", "test", "sub_adapter", "include_path", "model", "base", "adapter", "super_adapter",
     "package", "sparse", "teacher", "path", "base_model_name_or_path", "_name_or_path", "name_or_path",
     "tokenizer_name_or_path", "model_name_or_path", "tokenizer_file", "vocab_file", "merges_file",
     "special_tokens_map_file", "tokenizer", "cache_file", "covariance_file")
)  # fmt: skip
"""Keys of JSON files, ours and other tools', whose value may be a file or folder."""


class Upload(NamedTuple):
    """A file to upload: name in the repository, bytes, and content if it is not the file's."""

    name: str
    size: int
    content: bytes | None


def write_card(folder: Path, figures: Sequence[Record] = ()) -> None:
    path = artifacts.find_record(folder)
    assert path is not None, folder
    with reading(path):
        text = card(path.name, artifacts.read_json(path), figures)
    artifacts.write_text(folder / artifacts.README, text)


def card(kind: str, record: Record, figures: Sequence[Record] = ()) -> str:
    """Return the card of an artifact; `kind` is its record's file name, such as sparsity.json."""
    words = _words(kind, record)
    has_lora = words["is_adapter"] or "ranks" in record
    whole = "gguf" if kind == artifacts.GGUF else "transformers"
    metadata = ModelCardData(
        base_model=_hub_base(record),
        library_name="peft" if words["is_adapter"] else whole,
        pipeline_tag="text-generation",
        tags=["shears", "sparse", *(["lora"] if has_lora else [])],
    )
    named = [{**row, "name": f"{row['name']}, {row['task']}"} for row in figures]
    ranks = ranks_by_kind(ranks_of(record))
    tables = {
        "Figures": model_rows(named) if named else [],
        "Ranks": [{"group": f"`{group}`", "rank": text} for group, text in ranks.items()],
    }
    words |= {"metadata": metadata.to_yaml(), "tables": tables, "remarks": remarks(figures) if figures else []}
    return f"{_template().render(words)}\n"


def _template() -> Template:
    environment = Environment(keep_trailing_newline=False)
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", "\\|").split())
    return environment.from_string(files("shears.records").joinpath("card.md").read_text("utf-8"))


def _words(kind: str, record: Record, repo: str = "", subfolder: str = "") -> dict[str, Any]:
    holds = FORMAT_OF_RECORD[kind].holds if kind in FORMAT_OF_RECORD else "model"
    folder, title = FOLDERS[kind]
    base = paths.without_folders(str(record.get("model") or record.get("base") or "sparse"))
    base = base if paths.HUB_NAME.fullmatch(base) else ACTIVE.sub("_", paths.last_part(base))
    largest = record.get("max_rank", record.get("rank", 0))
    words = {"loaded": f'"{folder}"', "served": folder, "folder": folder, "download": ""}
    if repo:
        copy = paths.last_part(repo)
        folder = f"{copy}/{subfolder}" if subfolder else copy
        words = {
            "loaded": f'"{repo}", subfolder="{subfolder}"' if subfolder else f'"{repo}"',
            "served": folder if subfolder else repo,
            "folder": folder,
            "download": f"    hf download {repo} --local-dir {copy}\n",
        }
    return {
        "kind": kind,
        "record": record,
        "config": record.get("config") or {},
        "holds": holds,
        "is_adapter": holds == "adapter" or kind in (artifacts.SEARCH_SPACE, artifacts.RECOVERY),
        "base": base,
        "title": title.format(base),
        "rank": next((rank for rank in LORA_RANKS if rank >= largest), largest),
        "name": lambda path: f"`{ACTIVE.sub('_', paths.without_folders(str(path)))}`",
        "share": "{:.1%}".format,
        "embedded": EMBEDDED,
        "distribution": DISTRIBUTION,
        **words,
    }


def _hub_base(record: Record) -> str | None:
    base = str(record.get("model") or record.get("base") or "")
    if base in EMBEDDED:
        return EMBEDDED[base].hub
    return base if paths.HUB_NAME.fullmatch(base) and not os.path.exists(base) else None


def push(
    folder: str | Path, repo: str, *, base: str | None = None, private: bool = False, dry_run: bool = False
) -> list[Upload]:
    """Upload an artifact to a repository on the hub, which is created if needed; return its files.

    `base` is the hub id of the model that an adapter belongs to; it replaces the local folder.
    `dry_run` uploads nothing and needs no network. InputError for an adapter whose base is local.
    """
    folder = paths.expanded(folder)
    for name in filter(None, (repo, base)):
        if not paths.HUB_NAME.fullmatch(name) or os.path.exists(name):
            raise InputError(f"a repository must be named like owner/name, got {name!r}")
    record = artifacts.find_record(folder)
    if record is not None and record.name in artifacts.KINDS:
        artifacts.read_record(folder, record.name)  # compares its weights with the record
    elif not (folder / "config.json").is_file() or (folder / artifacts.RECIPE).is_file():
        raise InputError(f"push needs the folder of a model, an adapter or a package, got {folder}")
    uploads = list(_uploads(folder, repo, base))
    if dry_run:
        return uploads
    operations = [
        CommitOperationAdd(name, str(folder / name) if content is None else content) for name, _, content in uploads
    ]
    with option(f"the repository {repo}"):  # hf auth login is what the hub's refusal asks for
        HfApi().create_repo(repo, private=private, exist_ok=True)
        commit = HfApi().create_commit(repo, operations, commit_message="Upload by shears")
    logger.info("pushed %d files to %s", len(uploads), commit.commit_url)
    return uploads


def _uploads(folder: Path, repo: str, base: str | None) -> Iterator[Upload]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") or part.endswith(PARTIAL) or EXCLUDED.fullmatch(part) for part in name.parts):
            continue
        paths.own_file(path, folder)
        subfolder = name.parent.as_posix() if len(name.parts) > 1 else ""
        with reading(path):
            content = _public_content(path, repo if subfolder else base, repo, subfolder)
        size = path.stat().st_size if content is None else len(content)
        yield Upload(name.as_posix(), size, content)


def _public_content(path: Path, base: str | None, repo: str, subfolder: str) -> bytes | None:
    if path.name != artifacts.README:
        if path.suffix != ".json":
            return None
        content = artifacts.read_json(path)
        public = _with_base(path, content, base) if path.name in BASE_KEYS else _without_folders(content)
        text = f"{json.dumps(public, indent=2, ensure_ascii=False)}\n"
        return None if public == content else text.encode()
    text = path.read_text(encoding="utf-8")
    file = artifacts.find_record(path.parent)
    if file is not None and file.name in artifacts.KINDS:
        record = artifacts.read_object(file)
        public = _with_base(file, record, base)
        old = _words(file.name, record)
        new = _words(file.name, public, repo, subfolder)
        template = _template()
        for block in template.blocks.values():  # text that a person wrote into the card stays
            before, after = ("".join(block(template.new_context(words))) for words in (old, new))
            text = text.replace(before, after, 1)
        base = _hub_base(public)
    made: Any = ModelCard(text, ignore_metadata_errors=True)
    if base is not None:
        made.data.base_model = base
    return str(made).encode()


def _with_base(path: Path, content: dict[str, Any], base: str | None) -> dict[str, Any]:
    key = BASE_KEYS[path.name]
    recorded = str(content.get(key) or "")
    in_folder = paths.is_path(recorded) or (path.parent.parent / recorded).exists()  # beside it
    is_public = recorded in EMBEDDED or (paths.HUB_NAME.fullmatch(recorded) and not in_folder)
    if recorded and base is None and not is_public:
        raise InputError(
            f"the base of an artifact must be on the hub, {path} names the folder {recorded}; push "
            "that folder first and name its repository with --base"
        )
    return {**_without_folders(content), **({} if base is None else {key: base})}


def _without_folders(content: Any, key: str = "") -> Any:
    if isinstance(content, dict):
        return {name: _without_folders(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_without_folders(value, key) for value in content]
    is_source = isinstance(content, str) and key in SOURCES
    return paths.without_folders(content) if is_source else content
