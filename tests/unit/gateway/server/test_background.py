import asyncio

import pytest

from gateway.errors import TaskEnded
from gateway.server.background import BackgroundTasks


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise TypeError("connect() got an unexpected argument")


async def end() -> None:
    return


@pytest.mark.parametrize(("work", "reason"), [(fail, "unexpected argument"), (end, "without an error")])
async def test_waiter_is_told_that_a_required_task_ended(work, reason):
    tasks = BackgroundTasks({"database": work, "pool": forever}, {})
    async with tasks.running():
        with pytest.raises(TaskEnded, match=rf"the database task ended: .*{reason}"):
            await tasks.while_running(forever())
        assert not tasks.alive()


async def test_end_of_an_optional_task_does_not_disturb_a_waiter():
    tasks = BackgroundTasks({"pool": forever}, {"learner": fail})
    async with tasks.running():
        await tasks.while_running(asyncio.sleep(0))
        assert tasks.alive()


async def test_failure_of_the_awaited_work_is_raised():
    tasks = BackgroundTasks({"pool": forever}, {})
    async with tasks.running():
        with pytest.raises(TypeError):
            await tasks.while_running(fail())
