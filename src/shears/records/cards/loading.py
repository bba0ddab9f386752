"""How to load an artifact in the tools that people have, from a folder or from the hub."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from shears.config.embedded import EMBEDDED
from shears.records.cards.origin import SPARSE, base_of
from shears.records.paths import last_part

Record = Mapping[str, Any]

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
"""What a run calls the folders of artifacts: the names that the commands of a card use."""


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as its largest


class Place(NamedTuple):
    """Where an artifact is on the hub: owner/name, and the folder inside it that it lies in, empty for none."""

    repo: str
    subfolder: str = ""


def loading(kind: str, record: Record, place: Place | None = None) -> str:
    """Return the code and commands that load an artifact from a run's folder or, where it has one, from its place."""
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


def _on_hub(place: Place, needs_folder: bool) -> dict[str, str | int]:
    """Return the names of a repository: tools load it by its name, commands that need a folder download it first."""
    copy = last_part(place.repo)
    folder = f"{copy}/{place.subfolder}" if place.subfolder else copy
    loaded = f'"{place.repo}", subfolder="{place.subfolder}"' if place.subfolder else f'"{place.repo}"'
    download = f"    hf download {place.repo} --local-dir {copy}\n" if needs_folder or place.subfolder else ""
    served = folder if place.subfolder else place.repo
    return {"loaded": loaded, "served": served, "folder": folder, "download": download}


def _lora_rank(record: Record) -> int | str:
    """Return the least of vLLM's ranks that holds the adapter; the adapter's own beyond them."""
    largest = record.get("max_rank", record.get("rank", ""))
    return next((rank for rank in LORA_RANKS if isinstance(largest, int) and rank >= largest), largest)
