"""Super-adapters in folders, with their base and their record; ranks by name or from a file."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.checkpoints.tensor_files import TensorFiles
from shears.data.rows import source_fingerprint
from shears.errors import InputError, reading
from shears.models.grid_adapter import LEARNT
from shears.models.load import load_both, put_adapter
from shears.models.ref import ModelRef, checked_base, resolve
from shears.models.sparse_adapter import is_sparse
from shears.progress import is_first_process
from shears.records import artifacts
from shears.records.artifacts import RESULT, SEARCH_SPACE, __version__, check_input, inherited, read_object, read_record
from shears.records.folders import working_folder
from shears.records.paths import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADDED, A, B, expanded, is_path, linear_of
from shears.records.publishing import write_card


class SuperAdapter(NamedTuple):
    """A super-adapter in memory; `record` is its search_space.json, with its base's trainings."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    elastic: ElasticAdapter
    record: dict[str, Any]


def space_of_record(record: Mapping[str, Any]) -> SearchSpace:
    with reading(SEARCH_SPACE):
        return SearchSpace.of_data(record["groups"])


def load_super_adapter(
    folder: str | Path, model: str | None = None, dtype: str = "auto", device: str = "auto"
) -> SuperAdapter:
    folder = Path(folder)
    record = read_record(folder, SEARCH_SPACE, "groups", "base", "base_fingerprint")
    base = checked_base(folder, record, model)
    network, tokenizer = load_both(base, dtype, device)
    adapted = put_adapter(network, folder, record=record)
    known = {**inherited(base.record), **record}
    return SuperAdapter(adapted, tokenizer, ElasticAdapter(adapted, space_of_record(record)), known)


NAMED = ("heuristic", "maximal", "minimal")


class RanksFile(NamedTuple):
    """A file of ranks; `number` counts a search's evaluations from 1, None is the chosen one."""

    path: Path
    number: int | None

    @property
    def name(self) -> str:
        return self.path.name if self.number is None else f"{self.path.name}:{self.number}"


def choose_ranks(ranks: str | None, space: SearchSpace, fingerprint: str) -> RankConfig:
    """Return the ranks of heuristic (None), maximal, minimal, RESULT.json[:N] or RANKS.json."""
    ranks = "heuristic" if ranks is None else ranks
    if ranks in NAMED:
        named: RankConfig = getattr(space, ranks)()
        return named
    if (file := ranks_file(ranks)) is None:
        raise InputError(f"sub_adapter must be {', '.join(NAMED)} or a JSON file, got {ranks!r}")
    content = read_object(file.path)
    with reading(file.name):
        if "chosen" in content:
            check_input("the super-adapter", content["super_adapter_fingerprint"], fingerprint)
            evaluated = [content["chosen"], *content["evaluations"]]
            if (file.number or 0) >= len(evaluated):
                count = len(content["evaluations"])
                raise InputError(f"sub_adapter {file.name} must name one of the {count} evaluations, counted from 1")
            content = evaluated[file.number or 0]
        elif file.number is not None:
            rule = f"{file.path} must be the result of a search if a number follows its name"
            raise InputError(f"{rule}, got {file.name}; leave the number out")
        return space.check(content.get("ranks", content))


def ranks_file(ranks: str | None) -> RanksFile | None:
    """Return the file that `ranks` names, with or without a number; None for a name."""
    if not ranks or ranks in NAMED:
        return None
    path = Path(ranks) / RESULT if Path(ranks).is_dir() else Path(ranks)
    if path.is_file():
        return RanksFile(path, None)
    numbered = re.fullmatch(r"(?P<path>.+):(?P<number>[1-9]\d{0,8})", ranks, re.ASCII)
    if numbered and Path(numbered["path"]).is_file():
        return RanksFile(Path(numbered["path"]), int(numbered["number"]))
    return None


def by_linear(space: SearchSpace, ranks: RankConfig) -> dict[str, int]:
    return {linear: ranks[group] for group, linears in space.modules.items() for linear in linears}


def write_super_adapter(work: Path, elastic: ElasticAdapter, base: ModelRef, about: Mapping[str, Any]) -> None:
    """Write a plain PEFT adapter, and last the record that marks a whole super-adapter."""
    space = elastic.space
    config: Any = copy.copy(elastic.model.peft_config[elastic.adapter])
    tensors = {name: tensor for name, tensor in elastic.tensors().items() if LEARNT not in name}
    odd = {name for name in tensors if not name.endswith((A, B))} | set(map(linear_of, tensors)) ^ set(space.linears)
    if odd or config.r != space.max_rank or config.rank_pattern or config.alpha_pattern:
        raise InputError(
            f"a super-adapter must be plain LoRA of rank {space.max_rank}, without rank patterns, on exactly the "
            f"linears of its search space; got rank {config.r}" + "".join(f" and {name}" for name in sorted(odd)[:1])
        )
    if infinite := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f"weights of an adapter must be finite, {infinite[0]} are not; lower the learning rate")
    save_file(tensors, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.base_model_name_or_path = base.recorded_name
    config.inference_mode = True
    data = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.to_dict().items())}
    artifacts.write_json(work / ADAPTER_CONFIG, data)
    sizes = {name: elastic.num_parameters(getattr(space, name)()) for name in NAMED}
    record = {
        "shears_version": __version__,
        **about,
        "base": base.recorded_name,
        "base_fingerprint": base.fingerprint,
        "fingerprint": artifacts.weights_fingerprint(work),
        "alpha": float(config.lora_alpha),
        "sparse_adapter": is_sparse(elastic.model),
        "max_rank": space.max_rank,
        "num_parameters": sizes,
        "groups": space.as_data(),
    }
    artifacts.sync_tree(work)
    artifacts.write_json(work / artifacts.SEARCH_SPACE, record)


def save_own_loop(elastic: ElasticAdapter, output: Path, base: str | Path | None, about: Mapping[str, Any]) -> Path:
    output = expanded(output)
    if not is_first_process():
        return output
    ref = resolve(str(base or elastic.model.peft_config[elastic.adapter].base_model_name_or_path))
    ref.refuse_package("train")
    _refuse_other_weights(elastic.model, ref)
    data: str | None = about["data"]
    sha256 = source_fingerprint(data) if data else None
    if data and sha256 is None and is_path(data):
        raise InputError(f"data must name a file, there is no {data}; correct it or leave it out")
    record = {"config": about, "template": about["template"], "data_sha256": sha256}
    with working_folder(output, about, resumes=False) as work:
        write_super_adapter(work, elastic, ref, record)
        write_card(work)
    return output


@torch.no_grad()
def _refuse_other_weights(model: PeftModel, ref: ModelRef) -> None:
    files = TensorFiles(ref.folder)
    for name, weight in model.get_base_model().named_parameters():
        plain = name.replace(".base_layer.", ".")
        compared = ADDED not in name and plain in files.specs and weight.is_floating_point()
        if compared and not torch.equal(files.load(plain).to(weight.dtype), weight.cpu()):
            raise InputError(
                f"the base must be the model of the training, {plain} of {ref.name} differs; "
                "name the right model, or save the changed one and train on its folder"
            )
