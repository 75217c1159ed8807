"""Compares the simulator with real engines: fits step times on an engine, and runs the same load on both."""
