"""`/admin/stats`: history, queue, backends and predictor as one JSON object."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from litestar import get
from litestar.connection import ASGIConnection
from litestar.handlers import HTTPRouteHandler

from gateway.api.auth import require_admin
from gateway.clock import Clock
from gateway.errors import InvalidRequest
from gateway.fleet.entry import BackendEntry, LastError
from gateway.fleet.pool import BackendPool
from gateway.prediction.predictor import Predictor
from gateway.scheduling.backend_load import BackendStatus
from gateway.scheduling.messages import Explanation
from gateway.scheduling.policies import CLASS_RATIO, Fcfs
from gateway.scheduling.scheduler import Scheduler
from gateway.storage.stats import Stats

ReadStats = Callable[[str | None, str | None, datetime | None], Awaitable[Stats | None]]
"""Returns the statistics of past requests for (app, user, since); None while the database is away."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Collects the content of `/admin/stats`."""

    read_stats: ReadStats
    recorder_state: Callable[[], dict[str, Any]]
    scheduler: Scheduler
    pool: BackendPool
    predictor: Predictor
    clock: Clock

    async def stats(self, app: str | None, user: str | None, since: datetime | None) -> dict[str, Any]:
        """Return the statistics; `app`, `user` and `since` restrict those of past requests."""
        stats = await self.read_stats(app, user, since)
        history = msgspec.to_builtins(stats) if stats else {"apps": [], "users": [], "totals": {}}
        return {
            **history,
            "queue": self._queue(),
            "backends": self.backends(),
            "predictor": self._predictor(),
            "history": {"available": stats is not None, **self.recorder_state()},
        }

    def backends(self) -> list[dict[str, Any]]:
        """Return the state of every backend."""
        return [self._backend(entry) for entry in self.pool.entries.values()]

    def _queue(self) -> dict[str, Any]:
        scheduler, now = self.scheduler, self.clock.monotonic()
        oldest_s = scheduler.oldest_arrival_s()
        return {
            "waiting": scheduler.waiting,
            "waiting_tokens": scheduler.waiting_tokens,
            "oldest_ms": None if oldest_s is None else round(1000 * (now - oldest_s), 1),
            "by_class": _by_class(scheduler),
            "policy": scheduler.policy.name,
            "next": [_next(head) for head in scheduler.explain(now)],
        }

    def _backend(self, entry: BackendEntry) -> dict[str, Any]:
        snapshot = entry.snapshot
        return {
            "name": entry.name,
            "kind": entry.backend.spec.kind,
            "healthy": entry.healthy,
            "circuit": entry.circuit,
            "draining": entry.is_draining,
            "condition": entry.condition,
            "last_error": last_error_fields(entry.last_error, self.clock),
            "models": [card.id for card in entry.models],
            "kv_capacity_tokens": snapshot.kv_capacity_tokens if snapshot else None,
            "kv_used_tokens": snapshot.kv_used_tokens if snapshot else None,
            "running": snapshot.running if snapshot else None,
            "waiting": snapshot.waiting if snapshot else None,
            "preemptions": snapshot.preemptions if snapshot else None,
            **_status(self.scheduler.backend_status(entry.name)),
        }

    def _predictor(self) -> dict[str, Any]:
        """Return the version of the model and its recent quality. Predictions from history alone have no version."""
        quality, version = self.predictor.quality, self.predictor.version
        return {
            "version": version.number if version else None,
            "trained_at": version.trained_at if version else None,
            "rows": version.rows if version else None,
            "embedder": self.predictor.embedder,
            "seen": quality.seen,
            "mae": quality.mae(),
            "kendall_tau": quality.kendall_tau(),
            "p90_coverage": quality.p90_coverage(),
            "source": "model" if version else "history",
        }


def last_error_fields(error: LastError | None, clock: Clock) -> dict[str, Any] | None:
    """Return a backend's last error: its text, since when, how often, and whether it still lasts."""
    if error is None:
        return None
    since = clock.now() - timedelta(seconds=clock.monotonic() - error.since_s)
    return {"text": error.text, "since": since.isoformat(), "count": error.count, "current": error.current}


def _by_class(scheduler: Scheduler) -> dict[str, int]:
    """Return the number of waiting requests by the longest predicted service time of their class, in seconds."""
    counts = scheduler.waiting_by_class()
    if isinstance(scheduler.policy, Fcfs):  # which has one queue for all classes
        return {"all": sum(counts.values())} if counts else {}
    return {f"{CLASS_RATIO ** (length_class + 1):.3g}": counts[length_class] for length_class in sorted(counts)}


def _next(head: Explanation) -> dict[str, Any]:
    """Return a model's next request, and the reason why each backend cannot take it."""
    return {"model": head.model, "waited_ms": round(1000 * head.waited_s, 1), "kept_from": head.reasons}


def _status(status: BackendStatus | None) -> dict[str, Any]:
    """Return what the scheduler knows of a backend; empty values if it has not observed it yet."""
    if status is None:
        names = ("kv_learned_tokens", "kv_target", "metrics_believed", "seats", "trial_limit", "tpot_ms")
        return {"kv_reserved_tokens": 0, "in_flight": 0, **dict.fromkeys(names)}
    return {
        "kv_reserved_tokens": status.kv_reserved_tokens,
        "in_flight": status.in_flight,
        "kv_learned_tokens": status.kv_learned_tokens,
        "kv_target": round(status.kv_target, 3),
        "metrics_believed": status.metrics_fresh if status.reports_memory else None,
        "seats": status.max_num_seqs,
        "trial_limit": status.trial_limit,
        "tpot_ms": round(1000 * status.tpot_s, 2),
    }


def admin_routes(overview: Overview, admin_key: str | None) -> list[HTTPRouteHandler]:
    """Return `/admin/stats`, which requires the admin key."""

    @get("/admin/stats")
    async def stats(request: ASGIConnection[Any, Any, Any, Any]) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        query = request.query_params
        return await overview.stats(query.get("app"), query.get("user"), _since(query.get("since")))

    return [stats]


def _since(text: str | None) -> datetime | None:
    """Parse an ISO 8601 time; a time without a zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(
            f"since: {text[:50]!r} is not a time; use ISO 8601, for example 2026-01-31T12:00:00Z", param="since"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
