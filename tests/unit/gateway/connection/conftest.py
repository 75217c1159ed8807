"""Tests here run in virtual time, and fail if they leave a task or an unhandled exception."""

from tests.unit.gateway.virtual_time import no_task_is_left, pytest_asyncio_loop_factories

__all__ = ["no_task_is_left", "pytest_asyncio_loop_factories"]
