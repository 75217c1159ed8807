"""A pinned vLLM on the CPU: builds its environment and starts servers in it, for benchmarks and tests."""
