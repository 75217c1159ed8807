"""The benchmarks that produced the figures of the documentation: `python -m bench NAME`."""
