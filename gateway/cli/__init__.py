"""The `magnus` command: `main` parses, each command builds what it needs and runs it."""

from gateway.cli.main import main

__all__ = ["main"]
