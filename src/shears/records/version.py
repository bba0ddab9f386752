"""The version of shears, which records name."""

__version__ = "0.1.0"
