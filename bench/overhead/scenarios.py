"""What is measured, each scenario a function of the proxies under test; every one of them takes its turn."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench.overhead.client import Clients, Shape, take_turns
from bench.overhead.processes import Target

WARM_UP_REQUESTS = 300
STREAM_CHUNKS = 100
STREAMS_AT_ONCE = 32
PACE_MS = 20
LATENCY_RATE = 20.0
IDLE_STREAMS = 2_000
PEER_IDLE_STREAMS = 500
"""LiteLLM has no more than a thousand connections to an engine, and the streams beyond would wait for ever."""
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How long everything takes: rounds over all targets, and what each round sends."""

    rounds: int
    json_requests: int
    streams: int
    paced_streams: int
    latency_s: float
    memory_requests: int

    @classmethod
    def of(cls, *, quick: bool) -> "Effort":
        """Return that of a proper measurement, or of a quick one."""
        if quick:
            return cls(2, 1_000, 128, 64, 15.0, 20_000)
        return cls(5, 2_000, 320, 96, 60.0, 100_000)


@dataclass(frozen=True, slots=True)
class Subject:
    """A target with its clients."""

    target: Target
    clients: Clients

    def cpu_s(self) -> float:
        """CPU seconds of its process so far; 0 where there are no accounts."""
        return self.target.accounts.cpu_s() if self.target.accounts else 0.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU ms a request, of every round."""

    rounds: list[float]

    @property
    def ms(self) -> float:
        """The median round's."""
        return median(self.rounds)


Progress = Callable[[str], None]


async def warm_up(subjects: Sequence[Subject]) -> None:
    """Send what makes connections, caches and the predictor's first answers."""
    for subject in subjects:
        await subject.clients.closed_loop(Shape(), requests=WARM_UP_REQUESTS, at_once=16)
        await subject.clients.closed_loop(Shape(STREAM_CHUNKS), requests=STREAMS_AT_ONCE, at_once=STREAMS_AT_ONCE)


async def cpu_a_request(
    subjects: Sequence[Subject], shape: Shape, *, requests: int, at_once: int, rounds: int
) -> dict[str, Cpu]:
    """Return each subject's CPU time a request, in rounds that take turns."""
    spent: dict[str, list[float]] = {subject.target.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            before_s = subject.cpu_s()
            await subject.clients.closed_loop(shape, requests=requests, at_once=at_once)
            spent[subject.target.name].append(1000 * (subject.cpu_s() - before_s) / requests)
    return {name: Cpu(rounds) for name, rounds in spent.items()}


async def cpu_a_paced_chunk(subjects: Sequence[Subject], *, streams: int, rounds: int) -> dict[str, Cpu]:
    """Return each subject's CPU time a chunk of a stream that comes at its pace: a long stream less a short one."""
    long, short = Shape(STREAM_CHUNKS, PACE_MS), Shape(1, PACE_MS)
    of_long = await cpu_a_request(subjects, long, requests=streams, at_once=STREAMS_AT_ONCE, rounds=rounds)
    of_short = await cpu_a_request(subjects, short, requests=4 * streams, at_once=STREAMS_AT_ONCE, rounds=rounds)
    return {
        name: Cpu([(spent - of_short[name].ms) / (STREAM_CHUNKS - 1) for spent in cpu.rounds])
        for name, cpu in of_long.items()
    }


async def added_latency(direct: Subject, subject: Subject, seconds: float) -> tuple[float, float]:
    """Return by how many ms p50 and p99 of the latency at 20 requests/s are greater than the engine's own."""
    own, through = await take_turns(
        [direct.clients, subject.clients], rate=LATENCY_RATE, seconds=seconds, seed=len(subject.target.name)
    )
    own_ms, through_ms = _percentiles_ms(own), _percentiles_ms(through)
    return through_ms[49] - own_ms[49], through_ms[98] - own_ms[98]


async def added_ttft(direct: Subject, subject: Subject, *, streams: int, rounds: int) -> float:
    """Return by how many ms the median TTFT of paced streams is greater than the engine's own."""
    shape = Shape(STREAM_CHUNKS // 2, PACE_MS)
    spread_s = shape.chunks * shape.pace_ms / 1000
    ttfts_s: dict[str, list[float]] = {direct.target.name: [], subject.target.name: []}
    for _ in range(rounds):
        for each in (direct, subject):
            ttfts_s[each.target.name] += await each.clients.closed_loop(
                shape, requests=streams, at_once=STREAMS_AT_ONCE, spread_s=spread_s
            )
    return 1000 * (median(ttfts_s[subject.target.name]) - median(ttfts_s[direct.target.name]))


async def idle_stream_kib(subject: Subject, count: int) -> float:
    """Return the resident memory, in KiB, that an open stream takes of which nothing comes."""
    accounts = subject.target.accounts
    if accounts is None:
        raise ValueError("memory is that of a process with accounts")
    before_kib = accounts.resident_kib()
    async with subject.clients.held_streams(count):
        await asyncio.sleep(SETTLE_S)
        held_kib = accounts.resident_kib()
    return (held_kib - before_kib) / count


async def resident_mib(subject: Subject, requests: int, on_progress: Progress) -> tuple[float, float]:
    """Return the resident memory, in MiB, after so many requests, and after as many again."""
    accounts = subject.target.accounts
    if accounts is None:
        raise ValueError("memory is that of a process with accounts")
    resident: list[float] = []
    for part in ("first", "next"):
        on_progress(f"memory: the {part} {requests:,} requests")
        await subject.clients.closed_loop(Shape(), requests=requests, at_once=64)
        await asyncio.sleep(SETTLE_S)
        resident.append(accounts.resident_kib() / 1024)
    return resident[0], resident[1]


async def idle_cpu_share(subject: Subject, seconds: float = 3.0) -> float:
    """Return the share of a core that it takes when nobody asks anything."""
    before_s, start_s = subject.cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    return (subject.cpu_s() - before_s) / (time.monotonic() - start_s)


def _percentiles_ms(seconds: list[float]) -> list[float]:
    return [1000 * value for value in quantiles(seconds, n=100, method="inclusive")]
