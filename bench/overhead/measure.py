"""The whole measurement: start the processes, run the scenarios, collect the results."""

import os
import platform
import resource
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.load_client import load_client
from bench.overhead import litellm, scenarios
from bench.overhead.accounting import ProcessAccounts, load_average, split_cores
from bench.overhead.load import TIMEOUT_S, AnswerShape, ChatLoad
from bench.overhead.prompts import generated_prompts, past_row
from bench.overhead.results import AGAINST, MAGNUS, OverheadResults, Row
from bench.overhead.scenarios import Cpu, Effort, Subject, Target
from bench.warm_gateway import THIS_CHECKOUT, Checkout, WarmGateway, canned_engine, checkout_at

PAST_ROWS = 6_000
PROMPTS = 3_000
DESCRIPTORS = 16_384
APPLICATION = "bench"
STREAMS, JSON = "stream of 100 chunks, 32 at once", "JSON, {} connections"

KEYS = {"MAGNUS_AUTH_MODE": "keys"}
NO_TRAINING = {
    "MAGNUS_PREDICTION_TRAIN_AFTER_ROWS": "1000000000",
    "MAGNUS_PREDICTION_TRAIN_EVERY_S": "1000000000",
    "MAGNUS_PREDICTION_MIN_TRAIN_ROWS": "1000000",
    "MAGNUS_PREDICTION_WINDOW_ROWS": "1000000",
}
"""Settings under which no training starts: the trainer is a process of its own and would disturb the measurement."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Args:
        quick: fewer requests and rounds.
        memory: also measure resident memory over many requests, which takes minutes.
        peers: environment that contains LiteLLM, to measure it in turn with the gateway.
        against: another checkout, to measure its gateway in turn with this one.
    """

    quick: bool = False
    memory: bool = False
    peers: Path | None = None
    against: Path | None = None


@dataclass(slots=True)
class _Table:
    """Collects rows, each with the machine's load average at that time."""

    on_progress: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)

    def add(
        self, what: str, unit: str, values: Mapping[str, float], target: float | None = None, ratio: float | None = None
    ) -> None:
        rounded = {name: round(value, 4) for name, value in values.items()}
        if ratio is None and rounded.get(AGAINST):
            ratio = values[MAGNUS] / values[AGAINST]
        self.rows.append(Row(what, unit, rounded, target, load_average(), ratio and round(ratio, 4)))

    def add_cpu(self, what: str, spent: Mapping[str, Cpu], target: float) -> None:
        ratio = spent[MAGNUS].ratio_to(spent[AGAINST]) if AGAINST in spent else None
        self.add(f"CPU, {what}", "ms", {name: cpu.ms for name, cpu in spent.items()}, target, ratio)


async def measure(plan: Plan, on_progress: Callable[[str], None]) -> OverheadResults:
    """Run everything. The calling process becomes the client and leaves the core of the gateway.

    Raises:
        StartError: a process does not start.
        LoadError: an answer is incomplete or is not the engine's.
    """
    measured, others = split_cores()
    os.sched_setaffinity(0, others)
    _raise_descriptor_limit()
    table = _Table(on_progress)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magnus-overhead-")))
        engine_url = stack.enter_context(canned_engine())
        on_progress("importing history and training")
        proxies = [_warm(MAGNUS, THIS_CHECKOUT, folder, engine_url, measured)]
        if plan.against is not None:
            proxies.append(_warm(AGAINST, checkout_at(plan.against), folder, engine_url, measured))
        if plan.peers is not None:
            proxies.append(partial(litellm.serving, plan.peers, folder, engine_url, measured))
        engine = Target("engine", engine_url, "none")
        for part in (_idle_memory, _cpu, _memory) if plan.memory else (_idle_memory, _cpu):
            on_progress("starting")
            with ExitStack() as started:
                await _run(part, plan, [engine, *(started.enter_context(proxy()) for proxy in proxies)], table)
    return OverheadResults(
        quick=plan.quick,
        python=platform.python_version(),
        machine=_machine(),
        own_core=measured != others,
        litellm=litellm.VERSION if plan.peers else None,
        rows=table.rows,
        against=_revision(plan.against) if plan.against else None,
    )


StartProxy = Callable[[], AbstractContextManager[Target]]


def _warm(name: str, checkout: Checkout, folder: Path, engine_url: str, core: set[int]) -> StartProxy:
    """Fill a gateway's history, train its model, and return what starts it."""
    gateway = WarmGateway(folder / name, engine_url, KEYS, checkout)
    gateway.warm_up(past_row(prompt, tokens, APPLICATION) for prompt, tokens in generated_prompts(PAST_ROWS, seed=1))
    key = gateway.run("keys", "create", "--app", APPLICATION).strip()
    return partial(_serving, name, gateway, key, core)


@contextmanager
def _serving(name: str, gateway: WarmGateway, key: str, core: set[int]) -> Iterator[Target]:
    with gateway.serving(NO_TRAINING) as served:
        accounts = ProcessAccounts(served.pid)
        accounts.pin(core)
        yield Target(name, served.url, key, accounts)


Part = Callable[[Plan, Subject, list[Subject], _Table], Awaitable[None]]


async def _run(part: Part, plan: Plan, targets: list[Target], table: _Table) -> None:
    """Run one part on proxies that have just started, so that no part finds memory that another part allocated."""
    prompts = [prompt for prompt, _ in generated_prompts(PROMPTS, seed=2)]
    async with load_client(TIMEOUT_S) as client:
        direct, *subjects = (Subject(each, ChatLoad(client, each.url, each.key, prompts)) for each in targets)
        table.on_progress("warming up")
        await scenarios.warm_up([direct, *subjects])
        await part(plan, direct, subjects, table)


async def _cpu(plan: Plan, direct: Subject, subjects: list[Subject], table: _Table) -> None:
    effort = Effort.of(quick=plan.quick)
    for at_once in (16, 64):
        what = JSON.format(at_once)
        table.on_progress(what)
        spent = await scenarios.cpu_per_request(
            subjects, AnswerShape(), requests=effort.json_requests, at_once=at_once, rounds=effort.rounds
        )
        table.add_cpu(what, spent, 0.9)
    table.on_progress(STREAMS)
    spent = await scenarios.cpu_per_request(
        subjects,
        AnswerShape(scenarios.STREAM_CHUNKS),
        requests=effort.streams,
        at_once=scenarios.STREAMS_AT_ONCE,
        rounds=effort.rounds,
    )
    table.add_cpu(STREAMS, spent, 1.8)
    table.on_progress("paced streams")
    spent = await scenarios.cpu_per_paced_chunk(subjects, streams=effort.paced_streams, rounds=effort.rounds)
    table.add_cpu("a chunk of a paced stream", spent, 0.1)
    await _latency(effort, direct, subjects, table)


async def _latency(effort: Effort, direct: Subject, subjects: list[Subject], table: _Table) -> None:
    medians, tails, ttfts = {}, {}, {}
    for subject in subjects:
        name = subject.name
        table.on_progress(f"latency of {name}")
        medians[name], tails[name] = await scenarios.added_latency(direct, subject, effort.latency_s)
        ttfts[name] = await scenarios.added_ttft(direct, subject, streams=effort.paced_streams, rounds=effort.rounds)
    table.add("added latency at 20 requests/s, p50", "ms", medians, 2.0)
    table.add("added latency at 20 requests/s, p99", "ms", tails, 6.0)
    table.add("added TTFT, 32 paced streams", "ms", ttfts, 2.5)


async def _idle_memory(plan: Plan, _: Subject, subjects: list[Subject], table: _Table) -> None:
    count = scenarios.IDLE_STREAMS // 10 if plan.quick else scenarios.IDLE_STREAMS
    table.on_progress(f"{count:,} idle streams")
    kib = {}
    for subject in subjects:
        own_count = min(count, scenarios.LITELLM_IDLE_STREAMS) if subject.name == litellm.NAME else count
        kib[subject.name] = await scenarios.idle_stream_kib(subject, own_count)
    table.add(f"memory of an idle stream, {count:,} open", "KiB", kib, 60.0)


async def _memory(plan: Plan, _: Subject, subjects: list[Subject], table: _Table) -> None:
    effort, own = Effort.of(quick=plan.quick), subjects[0]
    first, next_ = await scenarios.resident_mib(own, effort.memory_requests, table.on_progress)
    done = f"{effort.memory_requests:,}"
    table.add(f"memory after {done} requests", "MiB", {own.name: first}, 250.0)
    table.add(f"growth over the next {done}", "MiB", {own.name: next_ - first}, 5.0)


def _raise_descriptor_limit() -> None:
    """Allow this process and its children a file descriptor for every stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{os.cpu_count()} cores, {model}"


def _revision(checkout: Path) -> str:
    """Return the commit of a checkout, or the name of its folder if it is not a Git checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or checkout.name
