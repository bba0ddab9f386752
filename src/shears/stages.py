"""One stage of a run: where its artifact lies, and whether that was made as the recipe asks, of what is there now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shears.artifacts import as_data, check_input, read_json, read_record, refuse_changes
from shears.export.choice import name_of
from shears.fields import StageConfig
from shears.recipe import ExportConfig, SearchConfig, SparsifyConfig, TrainConfig

KINDS: Mapping[str, type[StageConfig]] = {
    "sparsify": SparsifyConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "export": ExportConfig,
}


@dataclass(frozen=True)
class Stage:
    """One step of a run: where its artifact goes, what it was asked, how it is made."""

    name: str
    output: Path
    record: str
    config: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, str]]
    make: Callable[[], object]

    def is_done(self) -> bool:
        """Say whether the artifact is there; InputError if it was made with another configuration.

        Keys that came after the artifact was made have their defaults: they are what it was made with.
        """
        if not (self.output / self.record).is_file():
            return False
        made = as_data(KINDS[self.name].model_validate(read_json(self.output / self.record)["config"]))
        refuse_changes(self.output, _prefixed(self.name, made), _prefixed(self.name, self.config))
        return True

    def verify(self) -> None:
        """Raise InputError if the artifact was made from other inputs than those that are there now."""
        record = read_record(self.output, self.record)
        for key, fingerprint in self.inputs().items():
            if (before := record.get(key)) is not None:  # of what has no name, and of artifacts of earlier versions
                name = key.removesuffix("_fingerprint").removesuffix("_sha256")
                check_input(f"{name} of {self.output}", before, fingerprint)


def _prefixed(section: str, config: Mapping[str, Any]) -> dict[str, Any]:
    named = {"ranks": name_of(config["ranks"])} if section == "export" and config["ranks"] else {}
    return {f"{section}.{key}": value for key, value in {**config, **named}.items()}
