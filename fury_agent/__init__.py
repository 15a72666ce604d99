"""The agent: one process that writes chunks to one directory, measures it, and reports every rollover."""

__version__ = "0.1.0"
