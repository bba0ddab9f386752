"""Where a search keeps its evaluations, and how its workers get along."""

from pydantic import Field

from shears.config.fields import StageConfig, StorageURL


class SharingConfig(StageConfig):
    """Where evaluations are kept; with a storage of its own name, several workers share them."""

    storage: StorageURL | None = Field(None, repr=False)
    """Where workers share the evaluations: sqlite:///FILE, postgresql://USER@HOST/NAME, mysql://USER@HOST/NAME or
    journal:///FILE (for NFS); by default a SQLite file in the output folder, for one process."""
    study: str | None = Field(None, min_length=1)
    """Name of the search in a shared storage; by default one is made of the super-adapter's fingerprint."""
    stale_after: float = Field(60.0, ge=0.5)
    """Seconds without a sign of life from a worker after which others evaluate what it had begun."""
    storage_timeout: float = Field(300.0, ge=0.0)
    """Seconds for which a shared storage that does not answer is tried again."""
