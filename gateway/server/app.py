"""The composition root: the only module that connects the parts of the gateway."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from litestar import Litestar
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.base import Backend, BackendSpec
from backends.registry import connect
from gateway.api.admin import Overview, admin_routes
from gateway.api.admin_backends import backend_routes
from gateway.api.admin_users import user_routes
from gateway.api.asgi import Limits
from gateway.api.auth import Authenticator, KeyAuthenticator, OpenAccess
from gateway.api.body_budget import BodyBudget
from gateway.api.exception_handlers import exception_handlers
from gateway.api.generation import Generations, RequestBuilder
from gateway.api.health import health_routes, metrics_route
from gateway.api.middleware import Edge, Middleware, RunningRequests
from gateway.api.models import model_routes
from gateway.api.passthrough import Passthrough
from gateway.api.request_recorder import RequestRecorder
from gateway.clock import Clock
from gateway.config import Settings, data_dir
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.dispatch.passthrough_proxy import PassthroughProxy
from gateway.dispatch.retry_budget import RetryBudget
from gateway.fleet.discovery import Discovery
from gateway.fleet.manager import BackendManager, spec_of
from gateway.fleet.pool import BackendPool
from gateway.prediction.predictor import Forecaster, Predictor
from gateway.scheduling.messages import Reconfigure
from gateway.scheduling.scheduler import Scheduler
from gateway.server.background import BackgroundTasks, Work
from gateway.server.derived_settings import cors, model_rules, queue_limits, queue_policy, timeouts
from gateway.storage.backend_store import BackendStore
from gateway.storage.database import create_database_engine
from gateway.storage.erasure import UserEraser
from gateway.storage.journal import Journal
from gateway.storage.keys import KeyStore
from gateway.storage.maintenance import DatabaseMaintainer
from gateway.storage.recorder import Recorder
from gateway.storage.repository import Repository
from gateway.storage.stats import StatsReader
from gateway.telemetry.events import EventCounter
from gateway.telemetry.gauges import Gauges
from gateway.telemetry.metrics import Metrics
from gateway.training.learner import Learner
from gateway.training.schedule import Cadence
from gateway.training.warm_start import replay
from gateway.upstream.client import UpstreamClient


@dataclass(frozen=True, slots=True)
class _Core:
    """The parts that all others use."""

    settings: Settings
    builder: RequestBuilder
    clock: Clock
    metrics: Metrics
    events: EventCounter
    predictor: Predictor
    scheduler: Scheduler
    dispatcher: Dispatcher
    running: RunningRequests


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway: its ASGI application, and what its operator can do with it.

    `asgi` starts working when the ASGI server starts it.
    """

    asgi: Edge
    _core: _Core
    _fleet: BackendManager
    _stopping: asyncio.Event

    def abandon_start(self) -> None:
        """End the start early, if it still waits for the database."""
        self._stopping.set()

    @property
    def running(self) -> int:
        """Number of requests that wait or run."""
        return len(self._core.running)

    def begin_shutdown(self) -> None:
        """Report that the gateway is not ready any more. It still answers requests."""
        self._core.running.stopping = True

    async def requests_finished(self, timeout_s: float) -> None:
        """Wait until the requests of this moment have their answers, at most `timeout_s`."""
        await self._core.running.finished(timeout_s)

    def end_requests(self) -> None:
        """End all requests, waiting and running, with the error `shutting_down`, and take no new ones."""
        self._core.dispatcher.close()
        self._core.running.end()

    async def apply(self, settings: Settings) -> None:
        """Apply the settings that can change while the gateway runs.

        Raises:
            ValueError: the gateway cannot connect to a backend; nothing has changed.
        """
        await self._fleet.configure(settings.backends)
        self._core.dispatcher.post(Reconfigure(queue_policy(settings), queue_limits(settings)))
        self._core.builder.configure(settings.scheduling.priorities, model_rules(settings))
        logging.getLogger().setLevel(settings.log.level.upper())

    def note_reload(self, result: str) -> None:
        """Count that the settings were read again; `result` is `applied` or `refused`."""
        self._core.events.reload(result)


def create_app(settings: Settings, *, clock: Clock, transport: httpx2.AsyncBaseTransport) -> Gateway:
    """Build the gateway. No event loop runs yet, so no part may need one.

    Args:
        settings: all settings; `database.url` names a running database, also for the embedded one.
        clock: source of all times.
        transport: HTTP transport to the engines; the application closes it at its end.
    """
    core = _build_core(settings, clock)
    engine = create_database_engine(settings.database.url)
    repository = Repository(engine)
    recorder = Recorder(repository, Journal(data_dir(settings) / "journal"))
    fleet = _build_fleet(core, BackendStore(engine), transport)
    maintainer = _build_maintainer(core, fleet, engine, repository)
    required: dict[str, Work] = {
        "database": maintainer.run,
        "dispatcher": core.dispatcher.run,
        "pool": fleet.pool.run,
        "discovery": fleet.discovery.run,
    }
    tasks = BackgroundTasks(required, {"learner": lambda: _learn(core, engine, maintainer)})
    stopping = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        recorder.start()
        try:
            async with tasks.running():
                await tasks.while_running(_first(maintainer.attempted(), stopping.wait()))
                try:
                    yield
                finally:
                    core.dispatcher.close()
        finally:
            await recorder.aclose()
            await engine.dispose()
            await transport.aclose()

    routes = Litestar(
        route_handlers=[
            *_public_routes(core, fleet.pool, recorder, KeyStore(engine, core.events.fallback), transport),
            *_operator_routes(core, fleet, recorder, StatsReader(engine, recorder, core.events.fallback), tasks),
            *user_routes(
                UserEraser(engine, recorder).erase, core.predictor.memory.forget_user, settings.auth.admin_key
            ),
        ],
        lifespan=[lifespan],
        exception_handlers=exception_handlers(),
        openapi_config=None,
        logging_config=None,
    )
    return Gateway(Edge(routes, cors(settings)), core, fleet, stopping)


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of several coroutines and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _build_core(settings: Settings, clock: Clock) -> _Core:
    metrics = Metrics()
    events = EventCounter(metrics)
    scheduling = settings.scheduling
    scheduler = Scheduler(queue_policy(settings), queue_limits(settings))
    dispatcher = Dispatcher(scheduler, clock.monotonic, events.stale_metrics)
    predictor = Predictor(events.fallback)
    builder = RequestBuilder(scheduling.queue_timeout_s, scheduling.priorities, model_rules(settings))
    return _Core(settings, builder, clock, metrics, events, predictor, scheduler, dispatcher, RunningRequests())


def _build_fleet(core: _Core, store: BackendStore, transport: httpx2.AsyncBaseTransport) -> BackendManager:
    settings = core.settings

    def connect_backend(spec: BackendSpec) -> Backend:
        return connect(spec, transport, settings.upstream.scrape_timeout_s)

    pool = BackendPool(
        [connect_backend(spec_of(backend)) for backend in settings.backends if backend.resolve == "once"],
        post=core.dispatcher.post,
        monotonic=core.clock.monotonic,
        interval_s=settings.upstream.scrape_interval_s,
        on_scrape_failure=core.events.scrape_failure,
        in_flight=core.scheduler.in_flight,
        on_circuit=core.events.circuit_change,
    )
    discovery = Discovery(pool, connect_backend, on_failure=lambda _: core.events.fallback("dns"))
    return BackendManager(settings.backends, pool=pool, discovery=discovery, store=store, connect=connect_backend)


def _build_maintainer(
    core: _Core, fleet: BackendManager, engine: AsyncEngine, repository: Repository
) -> DatabaseMaintainer:
    async def prepare() -> None:
        await fleet.restore()
        await replay(repository, core.predictor.memory)

    database = core.settings.database
    return DatabaseMaintainer(
        database.url,
        engine,
        warm_up=prepare,
        keep_days=database.retention_days,
        clock=core.clock,
        on_failure=lambda: core.events.fallback("database_away"),
    )


async def _learn(core: _Core, engine: AsyncEngine, maintainer: DatabaseMaintainer) -> None:
    """Train and load length models for as long as the gateway serves. Without them, history predicts."""
    await maintainer.ready()
    prediction = core.settings.prediction
    learner = Learner(
        core.predictor,
        engine,
        database_url=core.settings.database.url,
        embedder=prediction.embedder,
        window_rows=prediction.window_rows,
        threads=prediction.train_threads,
        cadence=Cadence(prediction.train_every_s, prediction.train_after_rows, prediction.min_train_rows),
        clock=core.clock,
        on_fallback=core.events.fallback,
    )
    await learner.run_with_retries(lambda: core.events.fallback("learner_without_database"))


def _public_routes(
    core: _Core, pool: BackendPool, recorder: Recorder, keys: KeyStore, transport: httpx2.AsyncBaseTransport
) -> list[ControllerRouterHandler]:
    settings, clock, events = core.settings, core.clock, core.events
    server, upstream, budget = settings.server, UpstreamClient(transport, timeouts(settings)), RetryBudget()
    authenticator: Authenticator = OpenAccess()
    if settings.auth.mode == "keys":
        authenticator = KeyAuthenticator(keys.lookup, clock.monotonic)
    request_recorder = RequestRecorder(recorder.record, core.predictor, core.metrics, settings.database.store_prompts)
    middleware = Middleware(request_recorder, clock, core.running)
    body_budget = BodyBudget(server.max_held_body_bytes, server.max_body_bytes)
    limits = Limits(
        server.max_body_bytes, server.max_text_bytes, server.body_timeout_s, server.keepalive_s, body_budget
    )
    generations = Generations(
        authenticator,
        pool,
        Forecaster(core.predictor, settings.prediction.budget_ms / 1000, events.fallback),
        GenerationProxy(core.dispatcher, upstream, pool, clock.monotonic, events.backend_failure, budget),
        middleware,
        limits,
        core.builder,
    )
    passthrough_proxy = PassthroughProxy(
        pool,
        upstream,
        scheduled=core.scheduler.in_flight,
        monotonic=clock.monotonic,
        on_failure=events.backend_failure,
        budget=budget,
    )
    rules, started_at = core.builder.current_rules, int(clock.now().timestamp())
    return [
        *generations.routes(),
        *Passthrough(authenticator, passthrough_proxy, middleware, limits, rules).routes(),
        *model_routes(pool, authenticator, started_at=started_at, rules=rules),
    ]


def _operator_routes(
    core: _Core, fleet: BackendManager, recorder: Recorder, stats: StatsReader, tasks: BackgroundTasks
) -> list[ControllerRouterHandler]:
    admin_key = core.settings.auth.admin_key
    overview = Overview(stats.read, recorder.state, core.scheduler, fleet.pool, core.predictor, core.clock)
    gauges = Gauges(core.metrics, core.scheduler, fleet.pool.entries, recorder.counts)
    return [
        *health_routes(fleet.pool, tasks.alive, core.clock, core.running),
        metrics_route(core.metrics, gauges.refresh),
        *admin_routes(overview, admin_key),
        *backend_routes(fleet, overview.backends, admin_key),
    ]
