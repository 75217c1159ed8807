"""Time jumps here, and nothing may be left behind."""

from tests.unit.gateway.virtual_time import nothing_is_left_behind, pytest_asyncio_loop_factories

__all__ = ["nothing_is_left_behind", "pytest_asyncio_loop_factories"]
