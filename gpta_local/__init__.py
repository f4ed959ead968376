"""gpta-local: a better small model out of a large one that never sees your data."""

__version__ = "0.1.0"
