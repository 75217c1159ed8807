"""The composition root: the only place where the gateway's parts meet."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
from httpx_aiohttp.httpx2 import AiohttpTransport
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException

from backends.base import Backend, BackendSpec
from backends.registry import connect
from gateway.api.admin import Overview, admin_routes
from gateway.api.auth import Door, KeyedDoor, OpenDoor
from gateway.api.generation import Generations, Limits
from gateway.api.health import health_routes, metrics_route
from gateway.api.openai import generation_routes, model_routes
from gateway.api.outcomes import Outcomes
from gateway.clock import Clock
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.pool import Pool
from gateway.dispatch.relay import Relay
from gateway.dispatch.upstream import Patience, Upstream
from gateway.errors import (
    BackendError,
    GatewayError,
    InvalidRequest,
    KeysUnavailable,
    MethodNotAllowed,
    RouteNotFound,
)
from gateway.history.database import DATABASE_ERRORS, RETRY_S, Database
from gateway.history.engine import create_history_engine
from gateway.history.journal import Journal
from gateway.history.keys import KeyStore
from gateway.history.recorder import Recorder
from gateway.history.repository import Repository
from gateway.history.stats import Stats, read_stats
from gateway.prediction.forecaster import Forecaster
from gateway.prediction.history import Caller
from gateway.prediction.predictor import Predictor
from gateway.scheduling.scheduler import Scheduler
from gateway.settings import BackendSettings, Settings, cache_dir
from gateway.telemetry.metrics import Metrics
from gateway.training.learner import Learner
from gateway.training.schedule import Cadence
from gateway.wire.error_bodies import openai_error

_log = logging.getLogger(__name__)


def default_transport() -> httpx2.AsyncBaseTransport:
    """Return the transport to the engines: aiohttp's, with as many connections as there are requests.

    Nothing is added to a request (no compression asked for, no User-Agent), and no proxy of the environment is used.
    """

    def session() -> aiohttp.ClientSession:
        skipped = ("Accept", "Accept-Encoding", "User-Agent")
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), skip_auto_headers=skipped)

    return AiohttpTransport(client=session, trust_env=False)


def create_app(settings: Settings, *, clock: Clock, transport: httpx2.AsyncBaseTransport) -> Litestar:
    """Build the gateway. It starts working when the ASGI server starts it.

    Args:
        settings: the whole tree; `database.url` is a real one here, an embedded database has been started before.
        clock: where times come from.
        transport: the way to the engines; closed with the app.

    Returns:
        The ASGI application; `state.begin_shutdown()` evicts what waits and takes nothing new.
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
        self.scheduler = Scheduler(max_queue=settings.scheduling.max_queue)
        self.dispatcher = Dispatcher(self.scheduler, clock.monotonic)
        self.engine = create_history_engine(settings.database.url)
        self.repository = Repository(self.engine)
        self.recorder = Recorder(self.repository, Journal(data_dir(settings) / "journal"))
        self.pool = self._pool()
        self.tasks: list[asyncio.Task[None]] = []

    def app(self) -> Litestar:
        settings = self.settings
        door: Door = OpenDoor()
        if settings.auth.mode == "keys":
            door = KeyedDoor(self._application_of, self.clock.monotonic)
        app = Litestar(
            route_handlers=[
                *generation_routes(self._generations(door)),
                *model_routes(self.pool, door, started_at=int(self.clock.now().timestamp())),
                *health_routes(self.pool, alive=lambda: not any(task.done() for task in self.tasks)),
                *admin_routes(self._overview(), settings.auth.admin_key),
                metrics_route(self.metrics, self._refresh_gauges),
            ],
            lifespan=[self._lifespan],
            exception_handlers={GatewayError: _answer_error, HTTPException: _answer_http, Exception: _answer_bug},
            openapi_config=None,
            logging_config=None,
        )
        app.state.begin_shutdown = self.dispatcher.close
        return app

    def _pool(self) -> Pool:
        upstream = self.settings.upstream
        return Pool(
            [self._backend(backend) for backend in self.settings.backends],
            post=self.dispatcher.post,
            interval_s=upstream.scrape_interval_s,
            on_scrape_failure=lambda name, _: self.metrics.scrape_failures.labels(name).inc(),
        )

    def _backend(self, backend: BackendSettings) -> Backend:
        spec = BackendSpec(
            name=backend.name,
            kind=backend.kind,
            url=backend.url.rstrip("/"),
            api_key=backend.api_key,
            models=None if backend.models is None else tuple(backend.models),
            kv_tokens=backend.kv_tokens,
            max_concurrency=backend.max_concurrency,
        )
        return connect(spec, self.transport, self.settings.upstream.scrape_timeout_s)

    def _generations(self, door: Door) -> Generations:
        server, upstream = self.settings.server, self.settings.upstream
        patience = Patience(upstream.connect_timeout_s, upstream.first_byte_timeout_s, upstream.idle_timeout_s)
        relay = Relay(
            self.dispatcher,
            Upstream(self.transport, patience),
            self.pool.backend,
            self.clock.monotonic,
            self._note_backend_failure,
        )
        outcomes = Outcomes(self.recorder.record, self.predictor, self.metrics, self.settings.database.store_prompts)
        limits = Limits(
            max_body_bytes=server.max_body_bytes,
            max_text_bytes=server.max_text_bytes,
            body_timeout_s=server.body_timeout_s,
            queue_timeout_s=self.settings.scheduling.queue_timeout_s,
        )
        forecaster = Forecaster(self.predictor, self.settings.prediction.budget_ms / 1000, self._note_fallback)
        return Generations(door, self.pool, forecaster, relay, outcomes, self.clock, limits)

    def _overview(self) -> Overview:
        return Overview(self._read_stats, self._recorder_state, self.scheduler, self.pool, self.predictor, self.clock)

    def _note_fallback(self, cause: str) -> None:
        self.metrics.fallbacks.labels(cause).inc()

    def _note_backend_failure(self, name: str, error: BackendError) -> None:
        self.metrics.backend_failures.labels(name, str(error.code or error.status)).inc()
        self.pool.note_failure(name, error)

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncGenerator[None]:
        database = self._database()
        self.recorder.start()
        self.tasks += [
            asyncio.create_task(database.run(), name="database"),
            asyncio.create_task(self.dispatcher.run(), name="dispatcher"),
            asyncio.create_task(self.pool.run(), name="pool"),
        ]
        for task in self.tasks:
            task.add_done_callback(_report_end)
        # Not among those that the gateway cannot live without: history predicts where this has failed.
        learner = asyncio.create_task(self._learn(database), name="learner")
        learner.add_done_callback(_report_end)
        await database.tried()
        try:
            yield
        finally:
            self.dispatcher.close()
            for task in (*self.tasks, learner):
                task.cancel()
            await asyncio.gather(*self.tasks, learner, return_exceptions=True)
            await self.recorder.aclose()
            await self.engine.dispose()
            await self.transport.aclose()

    def _database(self) -> Database:
        return Database(
            self.settings.database.url,
            self.engine,
            warm_up=self._warm_up,
            keep_days=self.settings.database.retention_days,
            clock=self.clock,
            on_failure=lambda: self._note_fallback("database_away"),
        )

    async def _learn(self, database: Database) -> None:
        """Bring the trained predictor up once the database is; without it, history goes on predicting."""
        await database.ready()
        prediction = self.settings.prediction
        cadence = Cadence(prediction.train_every_s, prediction.train_after_rows, prediction.min_train_rows)
        learner = Learner(
            self.predictor,
            self.engine,
            database_url=self.settings.database.url,
            embedder=prediction.embedder,
            cache=cache_dir(),
            window_rows=prediction.window_rows,
            threads=prediction.train_threads,
            cadence=cadence,
            clock=self.clock,
        )
        while True:
            try:
                await learner.run()
            except DATABASE_ERRORS as error:
                _log.warning("The length model is not looked after now: %s", error)
                self._note_fallback("learner_without_database")
                await asyncio.sleep(RETRY_S)

    async def _warm_up(self) -> None:
        """Teach the predictor what earlier runs have seen."""
        lengths = await self.repository.length_counts()
        self.predictor.history.warm_up((Caller(row.app, row.model, row.user), row.tokens, row.count) for row in lengths)
        for ratio in await self.repository.token_ratios():
            self.predictor.prompt_tokens.learn_one(ratio.app, ratio.model, ratio.prompt_bytes, ratio.input_tokens)
        _log.info("Warm start with %d remembered answers", sum(row.count for row in lengths))

    async def _application_of(self, key_hash: bytes) -> str | None:
        try:
            return await KeyStore(self.engine).lookup(key_hash)
        except DATABASE_ERRORS as error:
            self._note_fallback("keys_without_database")
            raise KeysUnavailable("API keys cannot be checked now; try again later") from error

    async def _read_stats(self, app: str | None, user: str | None, since: datetime | None) -> Stats | None:
        try:
            await self.recorder.flush()
            return await read_stats(self.engine, app=app, user=user, since=since)
        except DATABASE_ERRORS as error:
            _log.warning("No stats from the database: %s", error)
            self._note_fallback("stats_without_database")
            return None

    def _recorder_state(self) -> dict[str, Any]:
        names = ("pending", "written", "journaled", "replayed", "dropped", "refused")
        return {name: getattr(self.recorder, name) for name in names}

    def _refresh_gauges(self) -> None:
        self.metrics.waiting.set(self.scheduler.waiting)
        self.metrics.running.set(self.scheduler.running)
        for state, count in self._recorder_state().items():
            self.metrics.history.labels(state).set(count)


def data_dir(settings: Settings) -> Path:
    """Return the directory for what the gateway keeps, with `~` resolved."""
    return Path(settings.database.data_dir).expanduser()


def _report_end(task: asyncio.Task[None]) -> None:
    """Log a background task that ended by itself: the gateway is not alive without it."""
    if not task.cancelled():
        _log.critical("The %s has stopped; restart the gateway", task.get_name(), exc_info=task.exception())


def _answer_error(_: Request[Any, Any, Any], error: GatewayError) -> Response[bytes]:
    return Response(openai_error(error), status_code=error.status, headers=error.headers, media_type="application/json")


def _answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what the framework refused: a route that does not exist, a method that it does not take."""
    if error.status_code == 404:
        return _answer_error(request, RouteNotFound(f"There is no route {request.url.path[:200]}"))
    if error.status_code == 405:
        return _answer_error(request, MethodNotAllowed(f"{request.url.path[:200]} does not take {request.method}"))
    if error.status_code < 500:
        return _answer_error(request, InvalidRequest(error.detail))
    return _answer_bug(request, error)


def _answer_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("Unexpected failure in %s", request.url.path, exc_info=error)
    return _answer_error(request, GatewayError("The gateway itself failed; its log says why"))
