"""The composition root: the only place where the gateway's parts meet."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
from litestar import Litestar

from backends.base import Backend, BackendSpec
from backends.registry import connect
from gateway.api.admin import Overview, admin_routes
from gateway.api.admin_backends import backend_routes
from gateway.api.auth import Authenticator, KeyAuthenticator, OpenAccess
from gateway.api.generation import Generations, Limits
from gateway.api.health import health_routes, metrics_route
from gateway.api.jobs import Terms
from gateway.api.openai import generation_routes, model_routes
from gateway.api.outcomes import Outcomes
from gateway.api.refusals import exception_handlers
from gateway.clock import Clock
from gateway.config import Settings, data_dir
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.dispatch.passthrough_proxy import PassthroughProxy
from gateway.dispatch.retry_budget import RetryBudget
from gateway.errors import BackendError
from gateway.fleet.breaker import Circuit
from gateway.fleet.discovery import Discovery
from gateway.fleet.manager import BackendManager, spec_of
from gateway.fleet.pool import BackendPool
from gateway.prediction.forecaster import Forecaster
from gateway.prediction.predictor import Predictor
from gateway.protocol.model_rules import ModelRules
from gateway.scheduling.messages import QueueLimits
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from gateway.server.archive import Archive
from gateway.telemetry.gauges import Gauges
from gateway.telemetry.metrics import Metrics
from gateway.upstream.client import Timeouts, Upstream

_log = logging.getLogger(__name__)


def create_app(settings: Settings, *, clock: Clock, transport: httpx2.AsyncBaseTransport) -> Litestar:
    """Build the gateway. It starts working when the ASGI server starts it.

    Args:
        settings: the whole tree; `database.url` is a real one here, an embedded database has been started before.
        clock: where times come from.
        transport: the way to the engines; closed with the app.

    Returns:
        The ASGI application; `state.begin_shutdown()` evicts what waits and takes nothing new, `state.apply(settings)`
        takes over what can change at run time, and `state.note_reload(result)` counts that.
    """
    return _Gateway(settings, clock, transport).app()


class _Gateway:
    """All parts, wired. Built before the event loop runs, so nothing here may need one."""

    def __init__(self, settings: Settings, clock: Clock, transport: httpx2.AsyncBaseTransport) -> None:
        self.settings = settings
        self.clock = clock
        self.transport = transport
        self.metrics = Metrics()
        self.predictor = Predictor(self._note_fallback)
        self.scheduler = self._scheduler()
        self.dispatcher = Dispatcher(self.scheduler, clock.monotonic, self._note_stale)
        self.archive = Archive(
            settings, data_dir(settings) / "journal", self.predictor, clock, self._note_fallback, self._restore
        )
        self.pool = self._pool()
        self.discovery = Discovery(self.pool, self._connect, on_failure=lambda _: self._note_fallback("dns"))
        self.fleet = BackendManager(
            settings.backends,
            pool=self.pool,
            discovery=self.discovery,
            store=self.archive.backends,
            connect=self._connect,
        )
        self.upstream = self._upstream()
        self.budget = RetryBudget()
        self.priorities = dict(settings.scheduling.priorities)
        self.rules = rules_of(settings)
        self.tasks: list[asyncio.Task[None]] = []

    def app(self) -> Litestar:
        door: Authenticator = OpenAccess()
        if self.settings.auth.mode == "keys":
            door = KeyAuthenticator(self.archive.application_of, self.clock.monotonic)
        gauges = Gauges(self.metrics, self.scheduler, self.pool.entries, self.archive.recorder_state)
        overview = self._overview()
        app = Litestar(
            route_handlers=[
                *generation_routes(self._generations(door), self._passthrough()),
                *model_routes(self.pool, door, started_at=int(self.clock.now().timestamp()), rules=self._rules),
                *health_routes(self.pool, alive=lambda: not any(task.done() for task in self.tasks)),
                *admin_routes(overview, self.settings.auth.admin_key),
                *backend_routes(self.fleet, overview.backends, self.settings.auth.admin_key),
                metrics_route(self.metrics, gauges.refresh),
            ],
            lifespan=[self._lifespan],
            exception_handlers=exception_handlers(),
            openapi_config=None,
            logging_config=None,
        )
        app.state.begin_shutdown = self.dispatcher.close
        app.state.apply = self._apply
        app.state.note_reload = lambda result: self.metrics.reloads.labels(result).inc()
        return app

    async def _apply(self, settings: Settings) -> None:
        """Take over the settings that can change at run time.

        Raises:
            ValueError: a backend cannot be connected to; nothing has changed.
        """
        await self.fleet.configure(settings.backends)
        self.scheduler.limits = limits_of(settings)
        self.priorities.clear()
        self.priorities.update(settings.scheduling.priorities)
        self.rules = rules_of(settings)
        logging.getLogger().setLevel(settings.log.level.upper())

    async def _restore(self) -> None:
        await self.fleet.restore()

    def _scheduler(self) -> Scheduler:
        scheduling = self.settings.scheduling
        return Scheduler(policy_named(scheduling.policy, scheduling.alpha), limits_of(self.settings))

    def _pool(self) -> BackendPool:
        return BackendPool(
            [self._connect(spec_of(backend)) for backend in self.settings.backends if backend.resolve == "once"],
            post=self.dispatcher.post,
            monotonic=self.clock.monotonic,
            interval_s=self.settings.upstream.scrape_interval_s,
            on_scrape_failure=lambda name, _: self.metrics.scrape_failures.labels(name).inc(),
            in_flight=self.scheduler.in_flight,
            on_circuit=self._note_circuit,
        )

    def _upstream(self) -> Upstream:
        upstream = self.settings.upstream
        timeouts = Timeouts(upstream.connect_timeout_s, upstream.first_byte_timeout_s, upstream.idle_timeout_s)
        return Upstream(self.transport, timeouts)

    def _connect(self, spec: BackendSpec) -> Backend:
        return connect(spec, self.transport, self.settings.upstream.scrape_timeout_s)

    def _generations(self, door: Authenticator) -> Generations:
        settings, archive = self.settings, self.archive
        server, scheduling = settings.server, settings.scheduling
        return Generations(
            door,
            self.pool,
            Forecaster(self.predictor, settings.prediction.budget_ms / 1000, self._note_fallback),
            self._relay(),
            Outcomes(archive.recorder.record, self.predictor, self.metrics, settings.database.store_prompts),
            self.clock,
            Limits(server.max_body_bytes, server.max_text_bytes, server.body_timeout_s),
            Terms(scheduling.queue_timeout_s, self.priorities),
            self._rules,
        )

    def _rules(self) -> ModelRules:
        return self.rules

    def _relay(self) -> GenerationProxy:
        return GenerationProxy(
            self.dispatcher, self.upstream, self.pool, self.clock.monotonic, self._note_backend_failure, self.budget
        )

    def _passthrough(self) -> PassthroughProxy:
        return PassthroughProxy(
            self.pool,
            self.upstream,
            scheduled=self.scheduler.in_flight,
            monotonic=self.clock.monotonic,
            on_failure=self._note_backend_failure,
            budget=self.budget,
        )

    def _overview(self) -> Overview:
        archive = self.archive
        return Overview(archive.stats, archive.recorder_state, self.scheduler, self.pool, self.predictor, self.clock)

    def _note_fallback(self, cause: str) -> None:
        self.metrics.fallbacks.labels(cause).inc()

    def _note_stale(self, backend: str) -> None:
        _log.warning("The metrics of %s stand still though its load changes; its own ledger leads", backend)
        self._note_fallback("metrics_stale")

    def _note_backend_failure(self, name: str, error: BackendError) -> None:
        self.metrics.backend_failures.labels(name, str(error.code or error.status)).inc()

    def _note_circuit(self, name: str, circuit: Circuit) -> None:
        level = logging.WARNING if circuit is Circuit.OPEN else logging.INFO
        _log.log(level, "The circuit of %s is %s", name, circuit.replace("_", "-"))
        self.metrics.circuit_changes.labels(name, circuit).inc()

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncGenerator[None]:
        archive = self.archive
        archive.recorder.start()
        self.tasks += [
            asyncio.create_task(archive.database.run(), name="database"),
            asyncio.create_task(self.dispatcher.run(), name="dispatcher"),
            asyncio.create_task(self.pool.run(), name="pool"),
            asyncio.create_task(self.discovery.run(), name="discovery"),
        ]
        # Not among those that the gateway cannot live without: history predicts where this has failed.
        learner = asyncio.create_task(archive.learn(), name="learner")
        for task in (*self.tasks, learner):
            task.add_done_callback(_report_end)
        await archive.database.tried()
        try:
            yield
        finally:
            self.dispatcher.close()
            for task in (*self.tasks, learner):
                task.cancel()
            await asyncio.gather(*self.tasks, learner, return_exceptions=True)
            await archive.aclose()
            await self.transport.aclose()


def limits_of(settings: Settings) -> QueueLimits:
    """Return what may wait."""
    return QueueLimits(settings.scheduling.max_queue, settings.scheduling.max_queue_tokens)


def rules_of(settings: Settings) -> ModelRules:
    """Return what a request's model stands for."""
    defaults = settings.models.defaults
    max_tokens = {model: default.max_tokens for model, default in defaults.items() if default.max_tokens is not None}
    quantiles = {
        model: default.max_tokens_quantile
        for model, default in defaults.items()
        if default.max_tokens_quantile is not None
    }
    return ModelRules(settings.models.aliases, max_tokens, quantiles)


def _report_end(task: asyncio.Task[None]) -> None:
    """Log a background task that ended by itself: the gateway is not alive without it."""
    if not task.cancelled():
        _log.critical("The %s has stopped; restart the gateway", task.get_name(), exc_info=task.exception())
