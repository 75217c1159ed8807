"""Benchmarks of length prediction."""
