"""The daemon: journals what ranks log, merges it, and writes TensorBoard's event files."""

__version__ = "0.1.0"
