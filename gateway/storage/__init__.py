"""Postgres: finished requests, statistics, API keys, backends; a journal on disk while Postgres is unreachable."""
