"""How to load an artifact in the tools that people have."""

from collections.abc import Mapping
from typing import Any

from shears.cards.origin import base_of, shown

Record = Mapping[str, Any]

MODEL = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

    vllm serve {name}
    python convert_hf_to_gguf.py {name}      # of llama.cpp; the zeros stay, the file is as large as a dense one
    shears export {name} package --format package      # smaller, and faster on a CPU"""
ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")
```

    vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={name}
    shears export SUPER padded --format padded && python convert_lora_to_gguf.py padded      # of llama.cpp"""
MASKED = """\
It was trained with its product masked by the base's zeros, which other tools ignore: merge it, which is exact and keeps
every zero.

    shears export {name} merged --format merged-sparse --model {base}"""
SUPER = """
    shears search {name} search --data VALIDATION
    shears export {name} sub_adapter --ranks search/result.json"""
PACKAGE = """\
    shears generate {name} --prompt "..."
    shears unpack {name} unpacked      # an ordinary model folder, and the adapter"""


FOLDERS = {"sparsity.json": "sparse", "search_space.json": "super_adapter", "sub_adapter.json": "sub_adapter",
           "merged.json": "merged", "package.json": "package"}  # fmt: skip
"""What a run calls the folders of artifacts: the names that the commands of a card use."""


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as its largest


def loading(kind: str, record: Record) -> str:
    """Return the code and commands that load an artifact."""
    words = {"name": FOLDERS.get(kind, "."), "base": shown(base_of(record)), "rank": _lora_rank(record)}
    if kind in ("sparsity.json", "merged.json"):
        return MODEL.format(**words)
    if kind not in ("search_space.json", "sub_adapter.json"):
        return PACKAGE.format(**words)
    text = MASKED if record.get("sparse_adapter") else ADAPTER
    return (text + (SUPER if kind == "search_space.json" else "")).format(**words)


def _lora_rank(record: Record) -> int | str:
    """Return the least of vLLM's ranks that holds the adapter; the adapter's own beyond them."""
    largest = record.get("max_rank", "")
    return next((rank for rank in LORA_RANKS if isinstance(largest, int) and rank >= largest), largest)
