"""Time jumps here, and nothing may be left behind."""

from tests.unit.gateway.virtual_time import no_task_is_left, pytest_asyncio_loop_factories

__all__ = ["no_task_is_left", "pytest_asyncio_loop_factories"]
