"""Health checks: whether the process works, and whether it can serve requests."""

from collections.abc import Callable

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.admin import last_error_fields
from gateway.api.middleware import RunningRequests
from gateway.clock import Clock
from gateway.fleet.pool import BackendPool
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics


def health_routes(
    pool: BackendPool, alive: Callable[[], bool], clock: Clock, running: RunningRequests
) -> list[HTTPRouteHandler]:
    """Return `/health/live` (the process works) and `/health/ready` (at least one backend can take requests).

    `/health` is the same as `/health/live`: engines have that path, so existing checks of an engine still work.

    Args:
        pool: the backends.
        alive: returns whether all required background tasks run; otherwise the gateway must be restarted.
        clock: source of all times.
        running: says whether the gateway is stopping; then it is not ready, but still answers.
    """

    @get(["/health", "/health/live"])
    async def live() -> Response[dict[str, str]]:
        return Response({"status": "ok"}) if alive() else Response({"status": "failed"}, status_code=503)

    @get("/health/ready")
    async def ready() -> Response[dict[str, object]]:
        backends = {name: entry.condition for name, entry in pool.entries.items()}
        errors = {
            name: last_error_fields(entry.last_error, clock)
            for name, entry in pool.entries.items()
            if entry.last_error is not None and entry.last_error.current
        }
        status = "stopping" if running.stopping else "ok" if pool.ready else "no backend"
        body: dict[str, object] = {"status": status, "backends": backends}
        if errors:
            body["last_error"] = errors
        return Response(body, status_code=200 if status == "ok" else 503)

    return [live, ready]


def metrics_route(metrics: Metrics, refresh: Callable[[], None]) -> HTTPRouteHandler:
    """Return `/metrics` in Prometheus's text format; `refresh` updates the gauges before each answer."""

    @get("/metrics", media_type=CONTENT_TYPE)
    async def show() -> bytes:
        refresh()
        return metrics.render()

    return show
