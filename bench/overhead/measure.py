"""The whole benchmark: processes started, scenarios in turn, results."""

import os
import platform
import resource
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.overhead import litellm, scenarios
from bench.overhead.accounting import load_average, split_cores
from bench.overhead.client import Clients, Shape, session
from bench.overhead.processes import Target, WarmGateway, canned_engine
from bench.overhead.prompts import made_up
from bench.overhead.results import OverheadResults, Row
from bench.overhead.scenarios import Effort, Subject

PAST_ROWS = 6_000
PROMPTS = 3_000
DESCRIPTORS = 16_384
STREAMS, JSON = "stream of 100 chunks, 32 at once", "JSON, {} connections"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured.

    Args:
        quick: less of everything.
        memory: also what takes minutes, resident memory over many requests.
        peers: environment with LiteLLM, to be measured in turn with the gateway.
    """

    quick: bool = False
    memory: bool = False
    peers: Path | None = None


@dataclass(slots=True)
class _Table:
    """Rows as they come, each with the load of the machine at its end."""

    on_progress: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, unit: str, values: dict[str, float], target: float | None = None) -> None:
        self.rows.append(Row(what, unit, {name: round(v, 4) for name, v in values.items()}, target, load_average()))

    def add_cpu(self, what: str, spent: dict[str, scenarios.Cpu], target: float) -> None:
        self.add(f"CPU, {what}", "ms", {name: cpu.ms for name, cpu in spent.items()}, target)


async def measure(plan: Plan, on_progress: Callable[[str], None]) -> OverheadResults:
    """Run everything; the calling process becomes the client, on the cores that are not the gateway's.

    Raises:
        StartError: a process does not start.
        BadAnswer: an answer is not the engine's.
    """
    measured, others = split_cores()
    os.sched_setaffinity(0, others)
    _allow_descriptors()
    table = _Table(on_progress)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magnus-overhead-")))
        engine_url = stack.enter_context(canned_engine())
        on_progress("importing and training")
        warm = WarmGateway(folder, engine_url)
        key = warm.warm_up(made_up(PAST_ROWS, seed=1))
        engine = Target("engine", engine_url, "none")
        proxies = [partial(warm.serving, key, measured)]
        if plan.peers is not None:
            proxies.append(partial(litellm.serving, plan.peers, folder, engine_url, measured))
        parts = (_idle_memory, _cpu, _memory) if plan.memory else (_idle_memory, _cpu)
        for part in parts:
            on_progress("starting")
            with ExitStack() as started:
                targets = [started.enter_context(proxy()) for proxy in proxies]
                await _run(part, plan, [engine, *targets], table)
    return OverheadResults(
        quick=plan.quick,
        python=platform.python_version(),
        machine=_machine(),
        own_core=measured != others,
        litellm=litellm.VERSION if plan.peers else None,
        rows=table.rows,
    )


Part = Callable[[Plan, Subject, list[Subject], _Table], Awaitable[None]]


async def _run(part: Part, plan: Plan, targets: list[Target], table: _Table) -> None:
    """Run a part on proxies that have just started: what one part has made them take, no other is to find free."""
    prompts = [prompt for prompt, _ in made_up(PROMPTS, seed=2)]
    async with session() as opened:
        direct, *subjects = (Subject(each, Clients(opened, each.url, each.key, prompts)) for each in targets)
        table.on_progress("warming up")
        await scenarios.warm_up([direct, *subjects])
        await part(plan, direct, subjects, table)


async def _cpu(plan: Plan, direct: Subject, subjects: list[Subject], table: _Table) -> None:
    effort = Effort.of(quick=plan.quick)
    for at_once in (16, 64):
        what = JSON.format(at_once)
        table.on_progress(what)
        spent = await scenarios.cpu_a_request(
            subjects, Shape(), requests=effort.json_requests, at_once=at_once, rounds=effort.rounds
        )
        table.add_cpu(what, spent, 0.9)
    table.on_progress(STREAMS)
    spent = await scenarios.cpu_a_request(
        subjects,
        Shape(scenarios.STREAM_CHUNKS),
        requests=effort.streams,
        at_once=scenarios.STREAMS_AT_ONCE,
        rounds=effort.rounds,
    )
    table.add_cpu(STREAMS, spent, 1.8)
    table.on_progress("paced streams")
    spent = await scenarios.cpu_a_paced_chunk(subjects, streams=effort.paced_streams, rounds=effort.rounds)
    table.add_cpu("a chunk of a paced stream", spent, 0.1)
    await _latency(effort, direct, subjects, table)


async def _latency(effort: Effort, direct: Subject, subjects: list[Subject], table: _Table) -> None:
    medians, tails, ttfts = {}, {}, {}
    for subject in subjects:
        name = subject.target.name
        table.on_progress(f"latency of {name}")
        medians[name], tails[name] = await scenarios.added_latency(direct, subject, effort.latency_s)
        ttfts[name] = await scenarios.added_ttft(direct, subject, streams=effort.paced_streams, rounds=effort.rounds)
    table.add("added latency at 20 requests/s, p50", "ms", medians, 2.0)
    table.add("added latency at 20 requests/s, p99", "ms", tails, 6.0)
    table.add("added TTFT, 32 paced streams", "ms", ttfts, 2.5)


async def _idle_memory(plan: Plan, _: Subject, subjects: list[Subject], table: _Table) -> None:
    count = scenarios.IDLE_STREAMS // 10 if plan.quick else scenarios.IDLE_STREAMS
    table.on_progress(f"{count:,} idle streams")
    own, *peers = subjects
    taken = {own.target.name: await scenarios.idle_stream_kib(own, count)}
    for peer in peers:
        taken[peer.target.name] = await scenarios.idle_stream_kib(peer, min(count, scenarios.PEER_IDLE_STREAMS))
    table.add(f"memory of an idle stream, {count:,} open", "KiB", taken, 60.0)


async def _memory(plan: Plan, _: Subject, subjects: list[Subject], table: _Table) -> None:
    effort, own = Effort.of(quick=plan.quick), subjects[0]
    first, next_ = await scenarios.resident_mib(own, effort.memory_requests, table.on_progress)
    done = f"{effort.memory_requests:,}"
    table.add(f"memory after {done} requests", "MiB", {own.target.name: first}, 250.0)
    table.add(f"growth over the next {done}", "MiB", {own.target.name: next_ - first}, 5.0)


def _allow_descriptors() -> None:
    """Let this process and those that it starts have a descriptor for every stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{os.cpu_count()} cores, {model}"
