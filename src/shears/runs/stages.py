"""One stage of a run: where its artifact is, and whether it was made with this configuration from these inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shears.config import ExportConfig, SearchConfig, SparsifyConfig, TrainConfig
from shears.config.fields import StageConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.export.ranks import ranks_name
from shears.records.artifacts import as_data, check_input, read_json, read_record, refuse_changes

CONFIGS: Mapping[str, type[StageConfig]] = {
    "sparsify": SparsifyConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "export": ExportConfig,
}


@dataclass(frozen=True)
class Stage:
    """One step of a run: output folder, record in it, configuration, fingerprints of the inputs, and how it is made."""

    name: str
    output: Path
    record: str
    config: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, str]]
    make: Callable[[], object]

    def is_done(self) -> bool:
        """Tell whether the artifact exists; InputError if it was made with another configuration or is damaged.

        A key that is newer than the artifact counts as having its default in it.
        """
        if not (self.output / self.record).is_file():
            return False
        refuse_changes(self.output, _prefixed(self.name, self._recorded_config()), _prefixed(self.name, self.config))
        return True

    def _recorded_config(self) -> dict[str, Any]:
        """Return the configuration in the record; InputError for another thing in its place."""
        record = read_json(self.output / self.record)
        config = record.get("config") if isinstance(record, dict) else None
        if not isinstance(config, dict):
            raise InputError(
                f"{self.output / self.record} must hold the configuration of {self.name}, got {config!r:.40}; the file "
                f"is damaged or belongs to another tool: delete {self.output} or choose another output"
            )
        try:
            return as_data(build(CONFIGS[self.name], self.name, config))
        except InputError as error:
            raise InputError(
                f"{self.output} must have a record that this version can read, got one of version "
                f"{record.get('shears_version')} or a damaged one: {error}; delete it or choose another output"
            ) from None

    def verify(self) -> None:
        """Raise InputError if the artifact was made from other inputs than the present ones."""
        record = read_record(self.output, self.record)
        for key, fingerprint in self.inputs().items():
            if (recorded := record.get(key)) is not None:  # embedded data and earlier versions have no fingerprint
                name = key.removesuffix("_fingerprint").removesuffix("_sha256")
                check_input(f"{name} of {self.output}", recorded, fingerprint)


def _prefixed(section: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration under keys such as `export.ranks`, with ranks by their name."""
    named = {"ranks": ranks_name(config["ranks"])} if section == "export" and config["ranks"] else {}
    return {f"{section}.{key}": value for key, value in {**config, **named}.items()}
