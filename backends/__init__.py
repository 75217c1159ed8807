"""Engines: what the gateway asks of them, and an adapter for each kind."""
