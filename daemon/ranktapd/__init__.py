"""The daemon: journals what the ranks of a job log, merges it, and writes TensorBoard's event files."""

__version__ = "0.1.0"
