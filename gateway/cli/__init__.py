"""The command line `magnus`. `main` reads the arguments; each command is a module of its own."""

from gateway.cli.main import main

__all__ = ["main"]
