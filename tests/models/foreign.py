"""Folders that bring Python along and ask for it wherever transformers, PEFT and datasets would look."""

import json
import pickle
from pathlib import Path
from typing import Any

AUTO_MAPS = {
    "config.json": {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"},
    "tokenizer_config.json": {"AutoTokenizer": ["stranger.Tokenizer", "stranger.Tokenizer"]},
    "generation_config.json": {"AutoModelForCausalLM": "stranger.Model"},
    "processor_config.json": {"AutoProcessor": "stranger.Processor"},
    "adapter_config.json": {},
}
MODULES = ("stranger", "__init__", "torch", "json", "peft", "custom_generate/generate", "model", "data")


class Armed:
    """An object whose unpickling writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "unpickled")


def arm(folder: Path, marker: Path, **config: Any) -> Path:
    """Let a model's or adapter's folder ask for code that would write `marker`; `config` changes its config.json."""
    for name, auto_map in AUTO_MAPS.items():
        path = folder / name
        before = json.loads(path.read_text()) if path.is_file() else {}
        if path.is_file() or (folder / "config.json").is_file():
            changes = config if name == "config.json" else {}
            if name == "adapter_config.json":
                changes = {"auto_mapping": {"base_model_class": "Model", "parent_library": "stranger"}}
            if before or name != "adapter_config.json":
                path.write_text(
                    json.dumps({**before, "auto_map": auto_map, **changes} if auto_map else before | changes)
                )
    for module in MODULES:
        path = folder / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"open({str(marker)!r}, 'a').write(__name__)\nConfig = Model = Tokenizer = Processor = object\n"
        )
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Armed(marker)))
    return folder
