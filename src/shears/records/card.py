"""The card of an artifact: metadata for the hub, a description, tables, code that loads it.

The same record gives the same bytes.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from shears.config.embedded import EMBEDDED
from shears.config.export import FORMAT_OF_RECORD
from shears.errors import DISTRIBUTION
from shears.records import artifacts
from shears.records.figures import figures_table, rank_table, size_table, sparsity_table
from shears.records.paths import HUB_NAME, HUB_SOURCE, is_path, last_part, without_folders

Record = Mapping[str, Any]
Figures = Sequence[Mapping[str, Any]]
"""Measurements, each with name, task, data, metric, value, ci95, n. The last one is the artifact's own
and goes into the metadata; the others are for comparison."""

ROUNDED = ("int8", "int4")  # formats of a package's values that unpack restores rounded
ACTIVE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\"'`$<>;|&\\]")  # people copy code and commands
SPARSE = "sparse"  # a run's folder of the sparse model; the base of a recovery
LOADED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({loaded})
tokenizer = AutoTokenizer.from_pretrained({loaded})
```

{download}"""
MODEL = f"""\
```python
{LOADED}    vllm serve {{served}}
    shears export {{folder}} gguf --format gguf      # for llama.cpp; the file is as large as a dense one
    shears export {{folder}} package --format package      # smaller, and faster on a CPU"""
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
ON_GRID = """\
It was trained for a package of int4 values, which holds exactly the weights that its training computed with:
zeros of the base kept, the adapter merged, the sum rounded. Other tools do not round: export it.

{download}    shears search {folder} search --data VALIDATION
    shears export {folder} package --ranks search/result.json --format package --model {base}"""
SUPER = """
    shears search {folder} search --data VALIDATION
    shears export {folder} sub_adapter --ranks search/result.json"""
PACKED = f"""\
```python
import shears  # pip install {DISTRIBUTION}
{LOADED}    shears generate {{folder}} --prompt "..."
    shears export {{folder}} unpacked --format unpacked      # an ordinary model folder, and the adapter"""
IN_GGUF = """\
{download}    llama-cli -m {folder}/model.gguf
    ollama create NAME -f {folder}/Modelfile
    shears generate {folder} --prompt "..."      # converts it first"""
FETCHED = """\
The base is the model that shears embeds: `shears init {base}` downloads it.

"""
ALL_TRAINED = "every smaller adapter inside it was trained too."
IN_PLACE = "An ordinary model folder with zeros in place."


def base_of(record: Record) -> str:
    """Return the name of the artifact's base model, without the folders of this machine."""
    name = without_folders(str(record.get("model") or record.get("base") or SPARSE))
    return name if HUB_NAME.fullmatch(name) else _harmless(last_part(name))


def _harmless(name: str) -> str:
    """Return a name that cannot end a string of Python, a word of a shell or a code span."""
    return ACTIVE.sub("_", name)


def _source(record: Record) -> str:
    base = base_of(record)
    weights = f"weights sha256 {str(record.get('base_fingerprint', ''))[:16]}..."
    if base in EMBEDDED:
        embedded = EMBEDDED[base]
        file = PurePosixPath(embedded.file).name
        weights = f"{embedded.hub} from the {file} of {embedded.package}; {weights}"
    return f"`{base}` ({weights})"


def _describe_sparse(record: Record) -> str:
    config = record["config"]
    is_calibrated = record.get("calibration_fingerprint")
    text = f", calibrated on {_data(config, 'calibration')}" if is_calibrated else ""
    fitted = (
        " The kept weights of each block are fitted to the dense model's hidden states." if "blocks" in record else ""
    )
    return (
        f"{_source(record)}, pruned to {record['achieved']:.1%} zeros in its decoder blocks by "
        f"{config['method']} (pattern {config['pattern']}, allocation {config['allocation']}{text})."
        f"{fitted} {IN_PLACE}"
    )


def _describe_healed(record: Record) -> str:
    config = record["config"]
    is_low_rank = config.get("train", "weights") != "weights"  # an option of earlier records
    what = "a low-rank update of its kept weights was" if is_low_rank else "its kept weights were"
    return (
        f"`{base_of(record)}`, pruned to {record['achieved']:.1%} zeros in its decoder blocks and "
        f"healed: {what} trained on {_data(config, 'data')} in {record['num_steps']} steps to predict "
        f"what {_data(record, 'teacher')} predicts. {IN_PLACE}"
    )


def _describe_super_adapter(record: Record) -> str:
    data = _trained(record["config"])
    words = f"{data}: {ALL_TRAINED} "
    if "trained_by" in record:
        words = f"{data or ', trained'} in a loop of the user's own. "
    largest = f"Ranks up to {record['max_rank']}, alpha {record['alpha']:g}."
    return f"A LoRA super-adapter for {_source(record)}{words}{largest}"


def _describe_sub_adapter(record: Record) -> str:
    trained = _trained(record, " trained on {}")
    return f"A LoRA adapter for {_source(record)}, cut out of a super-adapter{trained}."


def _describe_recovery(record: Record) -> str:
    adapter = f"A LoRA adapter of rank {record['rank']} for {_source(record)}"
    if record.get("healed"):
        return (
            f"{adapter}. It began as the closest product to what pruning took away, and was trained on "
            f"{_data(record, 'data')} together with the weights that pruning kept, to predict what "
            f"{_data(record, 'teacher')} predicts."
        )
    return f"{adapter}, not trained but computed: it gives back what pruning took away."


def _describe_merged(record: Record) -> str:
    before = record["sparsity"]["before"]
    after = record["sparsity"]["after"]
    lost = "" if after >= before else f", {before:.1%} before the adapter was merged"
    adapter = f"a LoRA adapter{_trained(record, ', trained on {},')}"
    return f"{_source(record)} with {adapter} merged into its weights: {after:.1%} zeros{lost}."


def _describe_package(record: Record) -> str:
    kind = "a LoRA adapter" if "ranks" in record else "an adapter"
    adapter = f" with {kind}{_trained(record, ', trained on {}')}" if _adapted(record) else ""
    text = f", rounded on {_data(record['config'], 'calibration')}" if record.get("rounded") else ""
    holds = "one bit a weight, and the weights that are not zero"
    return f"{_source(record)}{adapter}, packed by shears: {holds}{text}."


def _describe_gguf(record: Record) -> str:
    adapter = f" with a LoRA adapter{_trained(record, ', trained on {},')} merged into its weights" * _adapted(record)
    return f"{_source(record)}{adapter}, as one .gguf file, its matrices in {record['kind']}."


def _adapted(record: Record) -> bool:
    """Tell whether the artifact contains an adapter, ours (ranks) or another tool's (bytes)."""
    return "ranks" in record or bool(record.get("bytes", {}).get("adapter"))


def _describe_unpacked(record: Record) -> str:
    trained = _trained(record, ", trained on {},")
    merged = f", with a LoRA adapter{trained} in its weights" if "ranks" in record else ""
    values = record.get("values")
    near = f"the nearest numbers to the package's {values}"
    rounded = near if values in ROUNDED else "bit for bit the package's"
    made = "packed by shears and unpacked again: an ordinary model folder"
    return f"{_source(record)}{merged}, {made}, its weights {rounded}."


def _trained(record: Record, words: str = ", trained on {}") -> str:
    """Return `words` with the adapter's training data; empty for a record without them."""
    return words.format(_data(record, "data")) if record.get("data") else ""


def _data(config: Record, key: str) -> str:
    return f"`{_harmless(without_folders(str(config.get(key))))}`"


@dataclass(frozen=True)
class CardKind:
    """The particulars of one kind of artifact's card; `folder` is its name in a run."""

    title: str
    folder: str
    describe: Callable[[Record], str]
    code: str
    is_adapter: bool = False


EXPORTED: Mapping[str, tuple[Callable[[Record], str], str]] = {
    "adapter": (_describe_sub_adapter, ADAPTER),
    "model": (_describe_merged, MODEL),
    "package": (_describe_package, PACKED),
    "gguf": (_describe_gguf, IN_GGUF),
    "unpacked": (_describe_unpacked, MODEL),
}
"""Description and loading code of an export, by what its folder holds."""
CARDS: Mapping[str, CardKind] = {
    artifacts.SPARSITY: CardKind("{}, sparse", SPARSE, _describe_sparse, MODEL),
    artifacts.HEALED: CardKind("{}, pruned and healed", "healed", _describe_healed, MODEL),
    artifacts.SEARCH_SPACE: CardKind(
        "LoRA super-adapter for {}", "super_adapter", _describe_super_adapter, ADAPTER, is_adapter=True
    ),
    artifacts.RECOVERY: CardKind(
        "LoRA recovery for {}", f"{SPARSE}/recovery", _describe_recovery, RECOVERED, is_adapter=True
    ),
    **{
        record: CardKind(form.title, form.folder, *EXPORTED[form.holds], is_adapter=not form.is_model)
        for record, form in FORMAT_OF_RECORD.items()
    },
}
"""The kinds of cards, by the file names of their records."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for --max-lora-rank


class HubLocation(NamedTuple):
    """An artifact's repository on the hub (owner/name), and its folder there unless it is the top."""

    repo: str
    subfolder: str = ""


def write_card(folder: Path, figures: Figures = ()) -> None:
    """Write README.md beside the record of a folder; the folder's name does not matter."""
    path = artifacts.find_record(folder)
    assert path is not None, folder
    text = card(path.name, artifacts.read_json(path), figures)
    artifacts.write_text(folder / artifacts.README, text)


def card(kind: str, record: Record, figures: Figures = ()) -> str:
    """Return the card of an artifact; `kind` is its record's file name, such as sparsity.json."""
    heading, description, code = _naming_parts(kind, record, None)
    parts = [heading, description]
    if figures:
        parts += ["## Figures", figures_table(figures)]
    parts += [part for part in (sparsity_table(record), rank_table(record), size_table(record)) if part]
    parts += ["## How to load it", code]
    text = "\n\n".join(parts)
    return f"---\n{_metadata(kind, record, figures).to_yaml()}\n---\n\n{text}\n"


def published(text: str, kind: str, record: Record, public: Record, location: HubLocation) -> str:
    """Return a card with the names of `public` and with code that loads from the hub.

    The names of `record` are replaced. Text that a person wrote into the card stays.
    """
    parts = zip(_naming_parts(kind, record, None), _naming_parts(kind, public, location), strict=True)
    for old, new in parts:
        text = text.replace(old, new, 1)
    made: Any = ModelCard(text, ignore_metadata_errors=True)
    if made.data.get("model_name") == title(kind, record):
        made.data.model_name = title(kind, public)
    made.data.pop("base_model_relation", None)
    for key, value in hub_base(kind, public).items():
        made.data[key] = value
    return str(made)


def _naming_parts(kind: str, record: Record, location: HubLocation | None) -> tuple[str, str, str]:
    """Return the parts of a card with names of models: heading, description, loading code."""
    made = f" Made by shears {record.get('shears_version', '')}."
    before = record.get(artifacts.TRAINED_BEFORE) or ()
    if names := dict.fromkeys(_data(source, "data") for source in before):
        made = f" What it was made from had been trained on {', '.join(names)}.{made}"
    description = CARDS[kind].describe(record) + made
    return f"# {title(kind, record)}", description, loading(kind, record, location)


def title(kind: str, record: Record) -> str:
    """Return the heading of a card."""
    return CARDS[kind].title.format(base_of(record))


def _metadata(kind: str, record: Record, figures: Figures) -> ModelCardData:
    adapter = CARDS[kind].is_adapter
    return ModelCardData(
        **hub_base(kind, record),
        library_name="peft" if adapter else "gguf" if kind == artifacts.GGUF else "transformers",
        pipeline_tag="text-generation",
        tags=["shears", "sparse", *(["lora"] if adapter or "ranks" in record else [])],
        model_name=title(kind, record) if figures else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=_dataset(row),
                dataset_name=row["task"],
                metric_type=row["metric"],
                metric_value=row["value"],
            )
            for row in figures[-1:]
        ]
        or None,
    )


def hub_base(kind: str, record: Record) -> dict[str, Any]:
    """Return the hub's metadata on the base model; empty where the base is not on the hub.

    An embedded model is a rounded copy of a hub model: an artifact of it without training is marked
    as quantized.
    """
    base = str(record.get("model") or record.get("base") or "")
    if base in EMBEDDED:
        can_be_untrained = kind in (artifacts.SPARSITY, artifacts.PACKAGE, artifacts.UNPACKED)
        relation = {} if _adapted(record) or not can_be_untrained else {"base_model_relation": "quantized"}
        return {"base_model": EMBEDDED[base].hub, **relation}
    return {"base_model": base} if HUB_NAME.fullmatch(base) and not os.path.exists(base) else {}


def _dataset(row: Mapping[str, Any]) -> str:
    """Return the hub data set, a file's name without folders, or the task; the hub needs a name."""
    data = str(row["data"])
    if (match := HUB_SOURCE.fullmatch(data)) and not is_path(data):
        return match["name"]
    return Path(data).name or str(row["task"])


def loading(kind: str, record: Record, location: HubLocation | None = None) -> str:
    """Return the code and commands that load an artifact from a run's folder or from the hub."""
    largest = record.get("max_rank", record.get("rank", ""))
    enough = (rank for rank in LORA_RANKS if isinstance(largest, int) and rank >= largest)
    words = {"base": base_of(record), "rank": next(enough, largest)}
    text = _template(kind, record)
    if location is None:
        folder = CARDS[kind].folder
        words |= {"loaded": f'"{folder}"', "served": folder, "folder": folder, "download": ""}
    else:
        words |= _on_hub(location, needs_folder="{folder}" in text)
    return text.format(**words, called=last_part(str(words["folder"])))


def _template(kind: str, record: Record) -> str:
    code = CARDS[kind].code
    if not CARDS[kind].is_adapter:
        return code
    before = FETCHED if base_of(record) in EMBEDDED else ""
    if "quantize_aware" in record:
        return before + ON_GRID
    after = SUPER if kind == artifacts.SEARCH_SPACE else ""
    return before + (MASKED if record.get("sparse_adapter") else code) + after


def _on_hub(location: HubLocation, needs_folder: bool) -> dict[str, str | int]:
    """Return the names in the templates: tools load a repository, commands on folders download it."""
    copy = last_part(location.repo)
    folder = f"{copy}/{location.subfolder}" if location.subfolder else copy
    loaded = f'"{location.repo}"'
    if location.subfolder:
        loaded += f', subfolder="{location.subfolder}"'
    command = f"    hf download {location.repo} --local-dir {copy}\n"
    download = command if needs_folder or location.subfolder else ""
    served = folder if location.subfolder else location.repo
    return {"loaded": loaded, "served": served, "folder": folder, "download": download}
