"""`python -m gateway.cli` is `magnus`."""

from gateway.cli.main import main

main()
