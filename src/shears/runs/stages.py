"""One stage of a run: where its artifact lies, and whether that was made as the recipe asks, of what is there now."""

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
        """Say whether the artifact is there; InputError if it was made with another configuration, or is damaged.

        Keys that came after the artifact was made have their defaults: they are what it was made with.
        """
        if not (self.output / self.record).is_file():
            return False
        refuse_changes(self.output, _prefixed(self.name, self._made_with()), _prefixed(self.name, self.config))
        return True

    def _made_with(self) -> dict[str, Any]:
        """Return the configuration in the record; its weights are not read here, for `verify` does that."""
        record = read_json(self.output / self.record)
        config = record.get("config") if isinstance(record, dict) else None
        if not isinstance(config, dict):
            raise InputError(
                f"{self.output / self.record} must hold the configuration of {self.name}, got {config!r:.40}: it is "
                f"damaged or another's; delete {self.output} or choose another output"
            )
        try:
            return as_data(build(KINDS[self.name], self.name, config))
        except InputError as error:
            raise InputError(
                f"{self.output} must be made by a version that shares this one's keys, got one of another version "
                f"({record.get('shears_version')}) or a damaged record: {error}; delete it or choose another output"
            ) from None

    def verify(self) -> None:
        """Raise InputError if the artifact was made from other inputs than those that are there now."""
        record = read_record(self.output, self.record)
        for key, fingerprint in self.inputs().items():
            if (before := record.get(key)) is not None:  # of what has no name, and of artifacts of earlier versions
                name = key.removesuffix("_fingerprint").removesuffix("_sha256")
                check_input(f"{name} of {self.output}", before, fingerprint)


def _prefixed(section: str, config: Mapping[str, Any]) -> dict[str, Any]:
    named = {"ranks": ranks_name(config["ranks"])} if section == "export" and config["ranks"] else {}
    return {f"{section}.{key}": value for key, value in {**config, **named}.items()}
