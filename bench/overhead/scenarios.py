"""The scenarios that are measured. Each one runs on all targets in turn."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench.overhead.accounting import ProcessAccounts
from bench.overhead.load import AnswerShape, ChatLoad, poisson_load

WARM_UP_REQUESTS = 300
STREAM_CHUNKS = 100
STREAMS_AT_ONCE = 32
PACE_MS = 20
LATENCY_RATE = 20.0
IDLE_STREAMS = 2_000
LITELLM_IDLE_STREAMS = 500
"""LiteLLM has at most a thousand connections to an engine. Further streams would wait without end."""
MEMORY_REQUESTS = 100_000
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Effort:
    """Size of the measurement: rounds over all targets, and the requests of each round."""

    rounds: int
    json_requests: int
    streams: int
    paced_streams: int
    latency_s: float
    memory_requests: int

    @classmethod
    def of(cls, *, quick: bool) -> "Effort":
        """Return the size of a full or of a quick measurement."""
        return QUICK if quick else FULL


FULL = Effort(5, 2_000, 320, 96, 60.0, memory_requests=MEMORY_REQUESTS)
QUICK = Effort(2, 1_000, 128, 64, 15.0, memory_requests=20_000)


@dataclass(frozen=True, slots=True)
class Target:
    """A process that answers requests: its URL, an API key, and its accounts; the engine's are not read."""

    name: str
    url: str
    key: str
    accounts: ProcessAccounts | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A target and the load on it."""

    target: Target
    load: ChatLoad

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.target.name

    @property
    def accounts(self) -> ProcessAccounts:
        """Accounts of the target.

        Raises:
            ValueError: the target has none.
        """
        if self.target.accounts is None:
            raise ValueError(f"{self.name} has no accounts")
        return self.target.accounts


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time per request in ms, one value for each round."""

    rounds: list[float]

    @property
    def ms(self) -> float:
        """Median over the rounds."""
        return median(self.rounds)

    def ratio_to(self, other: "Cpu") -> float:
        """Return the median over the rounds of this CPU time divided by the other's."""
        return median(own / others for own, others in zip(self.rounds, other.rounds, strict=True))


Progress = Callable[[str], None]


async def warm_up(subjects: Sequence[Subject]) -> None:
    """Send requests that open connections, fill caches and load what is loaded on demand."""
    for subject in subjects:
        await subject.load.closed_loop(AnswerShape(), requests=WARM_UP_REQUESTS, at_once=16)
        await subject.load.closed_loop(AnswerShape(STREAM_CHUNKS), requests=STREAMS_AT_ONCE, at_once=STREAMS_AT_ONCE)


async def cpu_per_request(
    subjects: Sequence[Subject], shape: AnswerShape, *, requests: int, at_once: int, rounds: int
) -> dict[str, Cpu]:
    """Return the CPU time per request of each subject, in rounds that take turns."""
    spent: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            before_s = subject.accounts.cpu_s()
            await subject.load.closed_loop(shape, requests=requests, at_once=at_once)
            spent[subject.name].append(1000 * (subject.accounts.cpu_s() - before_s) / requests)
    return {name: Cpu(rounds) for name, rounds in spent.items()}


async def cpu_per_paced_chunk(subjects: Sequence[Subject], *, streams: int, rounds: int) -> dict[str, Cpu]:
    """Return the CPU time per chunk of a paced stream: the difference between a long and a short stream."""
    long, short = AnswerShape(STREAM_CHUNKS, PACE_MS), AnswerShape(1, PACE_MS)
    of_long = await cpu_per_request(subjects, long, requests=streams, at_once=STREAMS_AT_ONCE, rounds=rounds)
    of_short = await cpu_per_request(subjects, short, requests=4 * streams, at_once=STREAMS_AT_ONCE, rounds=rounds)
    return {
        name: Cpu([(spent - of_short[name].ms) / (STREAM_CHUNKS - 1) for spent in cpu.rounds])
        for name, cpu in of_long.items()
    }


async def added_latency(direct: Subject, subject: Subject, seconds: float) -> tuple[float, float]:
    """Return how many ms p50 and p99 of the E2E latency at 20 requests/s exceed those of the engine alone."""
    own, through = await poisson_load(
        [direct.load, subject.load], rate=LATENCY_RATE, seconds=seconds, seed=len(subject.name)
    )
    own_ms, through_ms = _percentiles_ms(own), _percentiles_ms(through)
    return through_ms[49] - own_ms[49], through_ms[98] - own_ms[98]


async def added_ttft(direct: Subject, subject: Subject, *, streams: int, rounds: int) -> float:
    """Return how many ms the median TTFT of paced streams exceeds that of the engine alone."""
    shape = AnswerShape(STREAM_CHUNKS // 2, PACE_MS)
    spread_s = shape.chunks * shape.pace_ms / 1000
    ttfts_s: dict[str, list[float]] = {direct.name: [], subject.name: []}
    for _ in range(rounds):
        for each in (direct, subject):
            ttfts_s[each.name] += await each.load.closed_loop(
                shape, requests=streams, at_once=STREAMS_AT_ONCE, spread_s=spread_s
            )
    return 1000 * (median(ttfts_s[subject.name]) - median(ttfts_s[direct.name]))


async def idle_stream_kib(subject: Subject, count: int) -> float:
    """Return the resident memory in KiB of one open stream that sends nothing."""
    before_kib = subject.accounts.resident_kib()
    async with subject.load.held_streams(count):
        await asyncio.sleep(SETTLE_S)
        held_kib = subject.accounts.resident_kib()
    return (held_kib - before_kib) / count


async def resident_mib(subject: Subject, requests: int, on_progress: Progress) -> tuple[float, float]:
    """Return the resident memory in MiB after `requests` requests, and after the same number again."""
    resident: list[float] = []
    for part in ("first", "next"):
        on_progress(f"memory: the {part} {requests:,} requests")
        await subject.load.closed_loop(AnswerShape(), requests=requests, at_once=64)
        await asyncio.sleep(SETTLE_S)
        resident.append(subject.accounts.resident_kib() / 1024)
    return resident[0], resident[1]


def _percentiles_ms(seconds: list[float]) -> list[float]:
    return [1000 * value for value in quantiles(seconds, n=100, method="inclusive")]
