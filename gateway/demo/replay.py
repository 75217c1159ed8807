"""Sends a workload's rows through a gateway as their applications would, and checks what comes back.

The rows' lengths are the engines' business (a truth file) and the check's; the gateway sees prompts alone.
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

Remembered = dict[tuple[str, str | None], tuple[int, int]]
"""(application, user or None for the whole application) to (requests, output tokens)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one row; `error` says what did in an answer's place."""

    row: WorkloadRow
    output_tokens: int
    e2e_s: float
    error: str | None = None


class AppReport(msgspec.Struct, frozen=True):
    """One application: what was sent and what the gateway's stats say of it."""

    app: str
    sent: int
    output_tokens: int
    remembered_requests: int
    remembered_output_tokens: int


class ReplayReport(msgspec.Struct, frozen=True):
    """What a replay showed.

    `errors`: how often which one came. `wrong_length`: answers that are not as long as their row says.
    `history_agrees`: every application and user in the gateway's stats has just the requests and tokens that the
    clients saw; the stats list the most active users.
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
        """Every row was answered, at its length, and is remembered so."""
        return not self.failed and not self.wrong_length and self.history_agrees


def draw_rows(paths: Iterable[Path], count: int | None, seed: int) -> list[WorkloadRow]:
    """Read workload files; of rows with the same prompt the first is kept, since the prompt is what names the truth.

    Args:
        paths: JSON lines, plain or .gz.
        count: how many rows to draw at random; None takes all. Without times they come in random order, as the requests
            of many applications do.
        seed: of the draw.

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

    Args:
        url: the gateway's.
        admin_key: for the stats.
        model: what all rows ask for: their own `model` says who answered them once.
        rate: requests a second (Poisson) where rows have no `t`.
        on_answer: called for every row that is done.
    """

    url: str
    admin_key: str
    model: str
    rate: float
    on_answer: Callable[[], None]
    seed: int = 0
    _answers: list[Answer] = field(default_factory=list)

    async def run(self, rows: list[WorkloadRow], since: str) -> ReplayReport:
        """Send all rows, every one once, and compare with what the gateway remembers since `since` (ISO 8601)."""
        loop = asyncio.get_running_loop()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        async with httpx2.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
            start_s = loop.time()
            async with asyncio.TaskGroup() as group:
                for row, at_s in zip(rows, self._arrivals(rows), strict=True):
                    await asyncio.sleep(max(0.0, start_s + at_s - loop.time()))
                    group.create_task(self._send(client, row))
            seconds = loop.time() - start_s
            remembered = await self._remembered(client, since)
        return self._report(seconds, remembered)

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
        self._answers.append(Answer(row, tokens, loop.time() - start_s, error))
        self.on_answer()

    def _body(self, row: WorkloadRow) -> dict[str, object]:
        messages: object = row.messages
        if row.messages is None:
            system = [{"role": "system", "content": row.system}] if row.system else []
            messages = [*system, {"role": "user", "content": row.text}]
        body: dict[str, object] = {"model": self.model, "messages": msgspec.to_builtins(messages)}
        return body | ({"user": row.user} if row.user else {})

    async def _remembered(self, client: httpx2.AsyncClient, since: str) -> Remembered:
        headers = {"authorization": f"Bearer {self.admin_key}"}
        response = await client.get("/admin/stats", params={"since": since}, headers=headers)
        response.raise_for_status()
        stats = response.json()
        return {
            (entry["app"], entry.get("user")): (entry["requests"], entry["output_tokens"]["total"])
            for entry in [*stats["apps"], *stats["users"]]
        }

    def _report(self, seconds: float, remembered: Remembered) -> ReplayReport:
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
            history_agrees=all(sent.get(key) == counts for key, counts in remembered.items())
            and sum(user is None for _, user in remembered) == sum(user is None for _, user in sent),
            users_compared=sum(user is not None for _, user in remembered),
            apps=[
                AppReport(app, *counts, *remembered.get((app, None), (0, 0)))
                for (app, user), counts in sorted(sent.items(), key=str)
                if user is None
            ],
        )

    def _sent(self) -> Remembered:
        """Requests and tokens by application, and by application and user, as the clients saw them."""
        sent: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
        for answer in self._answers:
            app = answer.row.app or application_of_system_prompt(answer.row.system)
            for key in {(app, None), (app, answer.row.user)}:
                sent[key].append(answer.output_tokens)
        return {key: (len(tokens), sum(tokens)) for key, tokens in sent.items()}
