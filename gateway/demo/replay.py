"""Sends the rows of a workload through a gateway, and compares the answers with the rows.

The engines know the length of each answer from a file. The gateway sees only the prompts.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, quantiles

import httpx2
import msgspec

from backends.simulator.workload import WorkloadError, WorkloadRow, read_workload
from gateway.api.auth import application_of_system_prompt

TIMEOUT_S = 600.0

Counts = dict[tuple[str, str | None], tuple[int, int]]
"""(application, user) to (requests, output tokens). User None stands for the whole application."""


@dataclass(frozen=True, slots=True)
class ReplayedRow:
    """One row after its request: the answer's length and time, or the error."""

    row: WorkloadRow
    output_tokens: int
    e2e_s: float
    error: str | None = None


class AppReport(msgspec.Struct, frozen=True):
    """One application: what the clients sent, and what the gateway's statistics say."""

    app: str
    sent: int
    output_tokens: int
    remembered_requests: int
    remembered_output_tokens: int


class ReplayReport(msgspec.Struct, frozen=True):
    """The result of a replay.

    Attributes:
        errors: number of requests by error.
        wrong_length: answers whose length is not that of their row.
        history_agrees: whether the gateway's statistics have exactly the requests and tokens that the clients saw, for
            every application and for every user that they list (the most active ones).
    """

    rows: int
    answered: int
    failed: int
    errors: dict[str, int]
    wrong_length: int
    seconds: float
    req_per_s: float
    e2e_mean_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    history_agrees: bool
    users_compared: int
    apps: list[AppReport]

    @property
    def flawless(self) -> bool:
        """Whether every row got an answer of the right length, and the statistics agree."""
        return not self.failed and not self.wrong_length and self.history_agrees


def draw_rows(paths: Iterable[Path], count: int | None, seed: int) -> list[WorkloadRow]:
    """Read rows from workload files.

    The prompt identifies the length of an answer, so of several rows with the same prompt only the first is used.

    Args:
        paths: files of JSON lines, plain or .gz.
        count: number of rows to draw at random; None for all. Rows without times are shuffled, because the requests of
            several applications arrive mixed.
        seed: seed of the draw.

    Raises:
        WorkloadError: a line is wrong, or no row has a prompt and a length.
    """
    unique: dict[str, WorkloadRow] = {}
    for path in paths:
        for row in read_workload(path):
            if row.text and row.output_tokens is not None:
                unique.setdefault(row.text, row)
    if not unique:
        raise WorkloadError("no row with a prompt and output_tokens")
    rows = list(unique.values())
    timed = all(row.t is not None for row in rows)
    chosen = random.Random(seed).sample(rows, min(len(rows), count or len(rows)))
    return sorted(chosen, key=lambda row: row.t or 0.0) if timed else chosen


@dataclass(slots=True)
class Replay:
    """One replay of rows against a gateway.

    Attributes:
        url: URL of the gateway.
        admin_key: key for its statistics.
        model: model of all requests. The `model` of a row names the model that answered it originally.
        rate: requests per second, with random gaps (a Poisson process), if the rows have no `t`.
        on_answer: called after every row.
        seed: seed of the gaps.
    """

    url: str
    admin_key: str
    model: str
    rate: float
    on_answer: Callable[[], None]
    seed: int = 0
    _answers: list[ReplayedRow] = field(default_factory=list)

    async def run(self, rows: list[WorkloadRow], since: str) -> ReplayReport:
        """Send every row once, and compare the answers with the statistics since `since` (ISO 8601)."""
        loop = asyncio.get_running_loop()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        async with httpx2.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
            start_s = loop.time()
            async with asyncio.TaskGroup() as group:
                for row, at_s in zip(rows, self._arrivals(rows), strict=True):
                    await asyncio.sleep(max(0.0, start_s + at_s - loop.time()))
                    group.create_task(self._send(client, row))
            seconds = loop.time() - start_s
            stored = await self._stored(client, since)
        return self._report(seconds, stored)

    def _arrivals(self, rows: list[WorkloadRow]) -> list[float]:
        if all(row.t is not None for row in rows):
            first_s = min(row.t or 0.0 for row in rows)
            return [(row.t or 0.0) - first_s for row in rows]
        gaps = random.Random(self.seed)
        at_s, arrivals = 0.0, []
        for _ in rows:
            arrivals.append(at_s)
            at_s += gaps.expovariate(self.rate)
        return arrivals

    async def _send(self, client: httpx2.AsyncClient, row: WorkloadRow) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        headers = {"x-app-id": row.app} if row.app else {}
        tokens, error = 0, None
        try:
            response = await client.post("/v1/chat/completions", json=self._body(row), headers=headers)
            page = response.json()
            if response.status_code == 200:
                tokens = page["usage"]["completion_tokens"]
            else:
                error = f"{response.status_code} {page['error']['code']}"
        except httpx2.HTTPError as failure:
            error = type(failure).__name__
        self._answers.append(ReplayedRow(row, tokens, loop.time() - start_s, error))
        self.on_answer()

    def _body(self, row: WorkloadRow) -> dict[str, object]:
        messages: object = row.messages
        if row.messages is None:
            system = [{"role": "system", "content": row.system}] if row.system else []
            messages = [*system, {"role": "user", "content": row.text}]
        body: dict[str, object] = {"model": self.model, "messages": msgspec.to_builtins(messages)}
        return body | ({"user": row.user} if row.user else {})

    async def _stored(self, client: httpx2.AsyncClient, since: str) -> Counts:
        headers = {"authorization": f"Bearer {self.admin_key}"}
        response = await client.get("/admin/stats", params={"since": since}, headers=headers)
        response.raise_for_status()
        stats = response.json()
        return {
            (entry["app"], entry.get("user")): (entry["requests"], entry["output_tokens"]["total"])
            for entry in [*stats["apps"], *stats["users"]]
        }

    def _report(self, seconds: float, stored: Counts) -> ReplayReport:
        good = [answer for answer in self._answers if answer.error is None]
        times = sorted(answer.e2e_s for answer in good) or [0.0]
        percentiles = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
        sent = self._sent()
        return ReplayReport(
            rows=len(self._answers),
            answered=len(good),
            failed=len(self._answers) - len(good),
            errors=dict(Counter(answer.error for answer in self._answers if answer.error is not None)),
            wrong_length=sum(answer.output_tokens != answer.row.output_tokens for answer in good),
            seconds=round(seconds, 3),
            req_per_s=round(len(good) / seconds, 3),
            e2e_mean_s=round(fmean(times), 4),
            e2e_p50_s=round(percentiles[49], 4),
            e2e_p99_s=round(percentiles[98], 4),
            history_agrees=all(sent.get(key) == counts for key, counts in stored.items())
            and sum(user is None for _, user in stored) == sum(user is None for _, user in sent),
            users_compared=sum(user is not None for _, user in stored),
            apps=[
                AppReport(app, *counts, *stored.get((app, None), (0, 0)))
                for (app, user), counts in sorted(sent.items(), key=str)
                if user is None
            ],
        )

    def _sent(self) -> Counts:
        """Count the requests and tokens that the clients saw, by application and by user."""
        sent: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
        for answer in self._answers:
            app = answer.row.app or application_of_system_prompt(answer.row.system)
            for key in {(app, None), (app, answer.row.user)}:
                sent[key].append(answer.output_tokens)
        return {key: (len(tokens), sum(tokens)) for key, tokens in sent.items()}
