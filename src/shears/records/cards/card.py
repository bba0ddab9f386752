"""The card of an artifact: metadata for the hub, a description, tables, code that loads it.

The same record gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from shears.config.embedded import EMBEDDED
from shears.records.artifacts import README, find_record, read_json, write_text
from shears.records.cards.origin import SPARSE, base_of, hub_base, origin, title
from shears.records.cards.tables import figures_table, rank_table, size_table, sparsity_table
from shears.records.paths import HUB_SOURCE, is_path, last_part

Record = Mapping[str, Any]
Figures = Sequence[Mapping[str, Any]]
"""Measurements, each with name, task, data, metric, value, ci95, n. The last one is the artifact's own and goes into
the metadata; those before it are for comparison."""

MODEL = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({loaded})
tokenizer = AutoTokenizer.from_pretrained({loaded})
```

{download}    vllm serve {served}
    python convert_hf_to_gguf.py {folder}      # of llama.cpp; the zeros stay, the file is as large as a dense one
    shears export {folder} package --format package      # smaller, and faster on a CPU"""
PEFT = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), {loaded})
```

{download}    vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {called}={served}"""
ADAPTER = f"""{PEFT}
    shears export SUPER padded --format padded && python convert_lora_to_gguf.py padded      # of llama.cpp"""
RECOVERED = f"""{PEFT}
    shears train {{base}} adapter --data TRAIN --init recovery      # start from it"""
MASKED = """\
It was trained with its product masked by the base's zeros, which other tools ignore: merge it, which is exact and keeps
every zero.

{download}    shears export {folder} merged --format merged-sparse --model {base}"""
SUPER = """
    shears search {folder} search --data VALIDATION
    shears export {folder} sub_adapter --ranks search/result.json"""
PACKAGE = """\
{download}    shears generate {folder} --prompt "..."
    shears unpack {folder} unpacked      # an ordinary model folder, and the adapter"""
FETCHED = """\
The base is the model that shears embeds: `shears fetch {base} --output {base}` makes its folder.

"""


FOLDERS = {"sparsity.json": SPARSE, "search_space.json": "super_adapter", "sub_adapter.json": "sub_adapter",
           "merged.json": "merged", "package.json": "package", "recovery.json": f"{SPARSE}/recovery",
           "unpacked.json": "unpacked/model"}  # fmt: skip
"""Names of artifacts' folders in a run, which the commands of a card use."""


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for --max-lora-rank


class HubLocation(NamedTuple):
    """An artifact's repository on the hub (owner/name) and its folder there, empty for the top folder."""

    repo: str
    subfolder: str = ""


def write_card(folder: Path, figures: Figures = ()) -> None:
    """Write README.md beside the record of a folder; the folder's name does not matter."""
    path = find_record(folder)
    assert path is not None, folder
    write_text(folder / README, card(path.name, read_json(path), figures))


def card(kind: str, record: Record, figures: Figures = ()) -> str:
    """Return the card of an artifact; `kind` is the file name of its record, such as sparsity.json."""
    heading, description, code = _naming_parts(kind, record, None)
    parts = [heading, description]
    if figures:
        parts += ["## Figures", figures_table(figures)]
    parts += [part for part in (sparsity_table(record), rank_table(record), size_table(record)) if part]
    parts += ["## How to load it", code]
    text = "\n\n".join(parts)
    return f"---\n{_metadata(kind, record, figures).to_yaml()}\n---\n\n{text}\n"


def published(text: str, kind: str, record: Record, public: Record, place: HubLocation) -> str:
    """Return a card with the names of `public` in place of those of `record`, and code that loads from the hub.

    Other text that a person wrote into the card stays.
    """
    parts = zip(_naming_parts(kind, record, None), _naming_parts(kind, public, place), strict=True)
    for old, new in parts:
        text = text.replace(old, new, 1)
    made: Any = ModelCard(text, ignore_metadata_errors=True)
    if made.data.get("model_name") == title(kind, record):
        made.data.model_name = title(kind, public)
    made.data.pop("base_model_relation", None)
    for key, value in hub_base(kind, public).items():
        made.data[key] = value
    return str(made)


def _naming_parts(kind: str, record: Record, place: HubLocation | None) -> tuple[str, str, str]:
    """Return the parts of a card that name the artifact or its base: heading, description, loading code."""
    return f"# {title(kind, record)}", origin(kind, record), loading(kind, record, place)


def _metadata(kind: str, record: Record, figures: Figures) -> ModelCardData:
    adapter = kind in ("search_space.json", "sub_adapter.json", "recovery.json")
    return ModelCardData(
        **hub_base(kind, record),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["shears", "sparse", *(["lora"] if adapter or "ranks" in record else [])],
        model_name=title(kind, record) if figures else None,
        eval_results=[_result(row) for row in figures[-1:]] or None,
    )


def _result(row: Mapping[str, Any]) -> EvalResult:
    return EvalResult(task_type="text-generation", dataset_type=_dataset(row), dataset_name=row["task"],
                      metric_type=row["metric"], metric_value=row["value"])  # fmt: skip


def _dataset(row: Mapping[str, Any]) -> str:
    """Return the name of a hub data set, a file's name without its folders, or the task: the hub refuses none."""
    data = str(row["data"])
    if (match := HUB_SOURCE.fullmatch(data)) and not is_path(data):
        return match["name"]
    return Path(data).name or str(row["task"])


def loading(kind: str, record: Record, place: HubLocation | None = None) -> str:
    """Return the code and commands that load an artifact: from a run's folder, or from `place` on the hub."""
    words = {"base": base_of(record), "rank": _lora_rank(record)}
    text = _template(kind, record)
    if place is None:
        folder = FOLDERS.get(kind, ".")
        words |= {"loaded": f'"{folder}"', "served": folder, "folder": folder, "download": ""}
    else:
        words |= _on_hub(place, needs_folder="{folder}" in text)
    return text.format(**words, called=last_part(str(words["folder"])))


def _template(kind: str, record: Record) -> str:
    if kind in ("sparsity.json", "merged.json", "unpacked.json"):
        return MODEL
    if kind not in ("search_space.json", "sub_adapter.json", "recovery.json"):
        return PACKAGE
    text = MASKED if record.get("sparse_adapter") else RECOVERED if kind == "recovery.json" else ADAPTER
    before = FETCHED if base_of(record) in EMBEDDED else ""
    return before + text + (SUPER if kind == "search_space.json" else "")


def _on_hub(place: HubLocation, needs_folder: bool) -> dict[str, str | int]:
    """Return the names that the templates need. Tools load a repository by name; commands on folders download it."""
    copy = last_part(place.repo)
    folder = f"{copy}/{place.subfolder}" if place.subfolder else copy
    loaded = f'"{place.repo}", subfolder="{place.subfolder}"' if place.subfolder else f'"{place.repo}"'
    download = f"    hf download {place.repo} --local-dir {copy}\n" if needs_folder or place.subfolder else ""
    served = folder if place.subfolder else place.repo
    return {"loaded": loaded, "served": served, "folder": folder, "download": download}


def _lora_rank(record: Record) -> int | str:
    """Return the smallest of vLLM's ranks that is enough for the adapter; the adapter's own where none is."""
    largest = record.get("max_rank", record.get("rank", ""))
    return next((rank for rank in LORA_RANKS if isinstance(largest, int) and rank >= largest), largest)
