"""A profile of a case that a reader can repeat: see `benchmarks.profiling.__main__`."""
