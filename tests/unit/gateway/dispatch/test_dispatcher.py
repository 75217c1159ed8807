import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.dispatch.dispatcher import PROGRESS_TOKENS, Dispatcher
from gateway.errors import BackendUnavailable, QueueFull, QueueTimeout, ShuttingDown
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Finished, Progress, QueueLimits, Request
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import FULL_BACKOFF_S, Scheduler
from tests.unit.gateway.scheduling.scheduler_helpers import observed

LENGTH = LengthQuantiles.of((10, 20, 40, 80, 150, 200))


def now():
    return asyncio.get_running_loop().time()


def request(id="a", *, timeout_s=60.0):
    return Request(id, "llama", 10, LENGTH, now(), now() + timeout_s)


def scheduler(max_queue=10, kind=Scheduler):
    return kind(policy_named("fcfs"), QueueLimits(max_queue, 10**6))


@asynccontextmanager
async def running(*messages, max_queue=10, on_stale=lambda _: None) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(scheduler(max_queue), now, on_stale)
    for message in messages:
        dispatcher.post(message)
    loop = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
        await settled()
        assert (dispatcher.scheduler.waiting, dispatcher.scheduler.running) == (0, 0)
        assert not loop.done()
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def settled():
    """Run the loop until nothing is left to do without a passing of time."""
    for _ in range(5):
        await asyncio.sleep(0)


async def ask(dispatcher, asked):
    with dispatcher.submit(asked) as ticket:
        return (await ticket.assignment()).backend


async def test_request_gets_its_backend():
    async with running(observed()) as dispatcher:
        assert await ask(dispatcher, request()) == "gpu-0"


async def test_a_request_waits_for_a_backend():
    async with running() as dispatcher:
        asking = asyncio.create_task(ask(dispatcher, request()))
        await asyncio.sleep(5)
        assert not asking.done()
        dispatcher.post(observed())
        assert await asking == "gpu-0"
        assert now() == 5


async def test_a_finished_request_makes_room_for_the_next():
    async with running(observed(max_concurrency=1)) as dispatcher:
        with dispatcher.submit(request("a")) as first:
            await first.assignment()
            asking = asyncio.create_task(ask(dispatcher, request("b")))
            await settled()
            assert dispatcher.scheduler.waiting == 1
        assert await asking == "gpu-0"


async def test_a_request_times_out_at_its_deadline():
    async with running() as dispatcher:
        with pytest.raises(QueueTimeout):
            await ask(dispatcher, request(timeout_s=30))
        assert now() == pytest.approx(30)


async def test_a_full_queue_rejects_with_a_retry_time():
    async with running(max_queue=1) as dispatcher, asyncio.TaskGroup() as group:
        waiting = group.create_task(ask(dispatcher, request("a")))
        await settled()
        with pytest.raises(QueueFull) as refusal:
            await ask(dispatcher, request("b"))
        assert int(refusal.value.headers["retry-after"]) >= 1
        dispatcher.post(observed())
        assert await waiting == "gpu-0"


async def test_a_failed_request_goes_to_another_backend():
    async with running(observed("gpu-0"), observed("gpu-1")) as dispatcher:
        with dispatcher.submit(request()) as ticket:
            assert (await ticket.assignment()).backend == "gpu-0"
            ticket.return_to_queue(full=False)
            assert (await ticket.assignment()).backend == "gpu-1"


async def test_a_request_that_failed_everywhere_gets_an_error():
    async with running(observed()) as dispatcher:
        with dispatcher.submit(request()) as ticket:
            await ticket.assignment()
            ticket.return_to_queue(full=False)
            with pytest.raises(BackendUnavailable, match="has failed this request"):
                await ticket.assignment()


async def test_full_backend_is_tried_again_after_its_back_off():
    async with running(observed()) as dispatcher:
        with dispatcher.submit(request()) as ticket:
            await ticket.assignment()
            ticket.return_to_queue(full=True)
            assert (await ticket.assignment()).backend == "gpu-0"
        assert now() == pytest.approx(FULL_BACKOFF_S)


async def test_full_backend_is_tried_again_while_answers_grow():
    async with running(observed()) as dispatcher, asyncio.TaskGroup() as group:

        async def grow():
            with dispatcher.submit(request("grows")) as ticket:
                await ticket.assignment()
                for turn in range(1000):
                    ticket.report_progress(turn * PROGRESS_TOKENS)
                    await asyncio.sleep(0.01)

        group.create_task(grow())
        with dispatcher.submit(request("refused")) as ticket:
            await ticket.assignment()
            ticket.return_to_queue(full=True)
            await ticket.assignment()
        assert now() == pytest.approx(FULL_BACKOFF_S, abs=0.02)


async def test_client_that_disconnects_while_queued_leaves_no_state():
    async with running() as dispatcher:
        asking = asyncio.create_task(ask(dispatcher, request()))
        await settled()
        assert dispatcher.scheduler.waiting == 1
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_client_that_leaves_before_the_first_step_leaves_nothing():
    async with running(observed()) as dispatcher:
        with dispatcher.submit(request()):
            pass


async def test_a_client_that_leaves_during_its_assignment_leaves_nothing():
    async with running(observed()) as dispatcher:
        asking = asyncio.create_task(ask(dispatcher, request()))
        await asyncio.sleep(0)  # the request is submitted
        await asyncio.sleep(0)  # the loop runs once
        assert (dispatcher.scheduler.running, asking.done()) == (1, False)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_client_that_disconnects_while_its_request_is_dropped_leaves_no_state():
    async with running() as dispatcher:
        with dispatcher.submit(request(timeout_s=1)):
            await asyncio.sleep(2)


async def test_client_that_disconnects_while_its_last_backend_fails_leaves_no_state():
    async with running(observed()) as dispatcher:
        with dispatcher.submit(request()) as ticket:
            await ticket.assignment()
            ticket.return_to_queue(full=False)


async def test_an_error_of_the_submitter_frees_its_place():
    async with running(observed(max_concurrency=1)) as dispatcher:
        with pytest.raises(ZeroDivisionError), dispatcher.submit(request("a")) as ticket:
            assert await ticket.assignment() == 1 / 0
        assert await ask(dispatcher, request("b")) == "gpu-0"


async def test_closing_evicts_waiting_requests_and_keeps_running_ones():
    async with running(observed(max_concurrency=1)) as dispatcher:
        with dispatcher.submit(request("runs")) as runs:
            await runs.assignment()
            waits = asyncio.create_task(ask(dispatcher, request("waits")))
            await settled()
            dispatcher.close()
            with pytest.raises(ShuttingDown):
                await waits
            assert dispatcher.scheduler.running == 1
            assert (await runs.assignment()).backend == "gpu-0"


async def test_a_running_request_may_still_be_retried_while_closing():
    async with running(observed("gpu-0"), observed("gpu-1")) as dispatcher:
        with dispatcher.submit(request()) as ticket:
            await ticket.assignment()
            dispatcher.close()
            ticket.return_to_queue(full=False)
            assert (await ticket.assignment()).backend == "gpu-1"


async def test_a_closed_dispatcher_rejects_new_requests():
    async with running(observed()) as dispatcher:
        dispatcher.close()
        with pytest.raises(ShuttingDown):
            dispatcher.submit(request())


async def test_an_evicted_request_is_not_sent():
    async with running() as dispatcher:
        asking = asyncio.create_task(ask(dispatcher, request()))
        await settled()
        dispatcher.close()
        dispatcher.post(observed())
        with pytest.raises(ShuttingDown):
            await asking


def messages_of(dispatcher):
    """Record the messages that are posted from now on."""
    posted, post = [], dispatcher.post

    def keep(message):
        posted.append(message)
        post(message)

    dispatcher.post = keep
    return posted


async def test_the_first_and_every_sixteenth_token_are_reported():
    async with running(observed()) as dispatcher:
        posted = messages_of(dispatcher)
        with dispatcher.submit(request()) as ticket:
            await ticket.assignment()
            for tokens in range(3 * PROGRESS_TOKENS):
                ticket.report_progress(tokens)
        reported = [message.output_tokens for message in posted if isinstance(message, Progress)]
        assert reported == [1, 1 + PROGRESS_TOKENS, 1 + 2 * PROGRESS_TOKENS]


async def test_the_first_token_on_each_backend_is_reported():
    async with running(observed("gpu-0"), observed("gpu-1")) as dispatcher:
        posted = messages_of(dispatcher)
        with dispatcher.submit(request()) as ticket:
            await ticket.assignment()
            ticket.report_progress(5)
            ticket.return_to_queue(full=False)
            await ticket.assignment()
            ticket.report_progress(2)
        assert [message.output_tokens for message in posted if isinstance(message, Progress)] == [5, 2]


async def test_a_complete_answer_is_reported_once_with_its_tokens():
    async with running(observed(max_concurrency=1)) as dispatcher:
        posted = messages_of(dispatcher)
        with dispatcher.submit(request("a")) as ticket:
            await ticket.assignment()
            ticket.finish(7)
            assert await ask(dispatcher, request("b")) == "gpu-0"  # although the first one has a slow client
        assert [message for message in posted if isinstance(message, Finished)] == [Finished("a", 7), Finished("b")]


async def test_stale_metrics_are_reported_once_each_time():
    stale = []

    def scrapes(used, count):
        return [observed(kv_capacity_tokens=10_000, kv_used_tokens=used, running=used) for _ in range(count)]

    async with running(*scrapes(0, 1), on_stale=stale.append) as dispatcher:
        for used in (0, 1, 1):
            for scrape in scrapes(used, 10):
                with dispatcher.submit(request()) as ticket:
                    await ticket.assignment()
                    ticket.report_progress(1000)
                    dispatcher.post(scrape)
                    await settled()
                dispatcher.post(scrape)
                await settled()
        assert stale == ["gpu-0", "gpu-0"]


async def test_a_backend_that_reports_no_memory_is_not_stale():
    stale = []
    async with running(observed(), on_stale=stale.append) as dispatcher:
        for _ in range(10):
            with dispatcher.submit(request()) as ticket:
                await ticket.assignment()
                dispatcher.post(observed())
                await settled()
            dispatcher.post(observed())
            await settled()
        assert stale == []


async def test_idle_loop_sleeps():
    steps = 0

    class CountingScheduler(Scheduler):
        def step(self, messages, now):
            nonlocal steps
            steps += 1
            return super().step(messages, now)

    dispatcher = Dispatcher(scheduler(kind=CountingScheduler), now)
    loop = asyncio.create_task(dispatcher.run())
    with pytest.raises(QueueTimeout):
        await ask(dispatcher, request(timeout_s=3600))
    await settled()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert steps <= 4  # start, submission, deadline, finish


async def test_many_requests_pass_one_by_one():
    async with running(observed(max_concurrency=1), max_queue=1000) as dispatcher:
        order = []

        async def work(number):
            with dispatcher.submit(request(str(number))) as ticket:
                await ticket.assignment()
                order.append(number)
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(work(number))
        assert order == list(range(200))
        assert now() == pytest.approx(20)
