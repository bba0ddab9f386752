"""The version, for the records of artifacts."""

__version__ = "0.1.0"
