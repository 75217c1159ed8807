"""`magnus stats`: the statistics of a running gateway."""

from typing import Annotated, Any

import httpx2
import msgspec
import typer
from rich import box
from rich.table import Table

from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, failed, print_json, read_settings
from gateway.config import Settings, data_dir
from gateway.server.admin_key import stored_admin_key

TIMEOUT_S = 30.0


def stats(
    url: Annotated[str | None, typer.Option(help="URL of the gateway. [from the configured host and port]")] = None,
    app: Annotated[str | None, typer.Option(help="Show only this application.")] = None,
    user: Annotated[str | None, typer.Option(help="Show only this end user.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Count only requests that arrived after this time (ISO 8601).")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show a running gateway's applications, backends, queue and predictions."""
    settings = read_settings(config)
    filters = {name: value for name, value in (("app", app), ("user", user), ("since", since)) if value is not None}
    page = _fetch(url or f"http://{settings.server.host}:{settings.server.port}", _admin_key(settings), filters)
    if as_json:
        print_json(page)
        return
    for table in (_apps(page), _backends(page)):
        console.print(table)
    console.print(_summary(page), markup=False)


def _admin_key(settings: Settings) -> str:
    """Return the configured admin key, or the one that the gateway has created."""
    return settings.auth.admin_key or stored_admin_key(data_dir(settings), create=False) or ""


def _fetch(url: str, key: str, filters: dict[str, str]) -> dict[str, Any]:
    try:
        with httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            headers = {"authorization": f"Bearer {key}"}
            response = client.get(f"{url.rstrip('/')}/admin/stats", params=filters, headers=headers)
        page = msgspec.json.decode(response.content)
    except (httpx2.HTTPError, msgspec.DecodeError) as error:
        failed(f"cannot read the statistics of {url}: {error}")
    if response.status_code == 400:
        bad_input(page["error"]["message"])
    if response.status_code != 200:
        failed(f"cannot read the statistics of {url}: {page['error']['message']}")
    return dict(page)


def _apps(page: dict[str, Any]) -> Table:
    headings = ("requests", "users", "tokens p50", "p90", "error", "covered", "e2e p50", "e2e p99")
    table = _table("application", headings)
    for app in page["apps"]:
        tokens, prediction, e2e = app["output_tokens"], app["prediction"], app["e2e_ms"]
        table.add_row(
            app["app"],
            _figure(app["requests"]),
            _figure(app["users"]),
            *(_figure(tokens[name]) for name in ("p50", "p90")),
            _figure(prediction["mae"]),
            _percent(prediction["p90_coverage"]),
            *("-" if ms is None else f"{ms / 1000:.2f} s" for ms in (e2e["p50"], e2e["p99"])),
        )
    return table


def _backends(page: dict[str, Any]) -> Table:
    headings = ("kind", "state", "KV used", "reserved", "of", "target", "runs", "waits", "preempted")
    table = _table("backend", headings)
    for backend in page["backends"]:
        memory = (backend[name] for name in ("kv_used_tokens", "kv_reserved_tokens", "kv_capacity_tokens"))
        load = (backend[name] for name in ("running", "waiting", "preemptions"))
        table.add_row(
            backend["name"],
            backend["kind"],
            _state(backend),
            *map(_figure, memory),
            _percent(backend["kv_target"]),
            *map(_figure, load),
        )
    return table


def _state(backend: dict[str, Any]) -> str:
    """Return whether the backend answers, and whether its metrics are up to date."""
    if not backend["healthy"]:
        return "unreachable"
    return "stale" if backend["metrics_believed"] is False else "ok"


def _table(first: str, headings: tuple[str, ...]) -> Table:
    """Return a table that fits 80 columns, with only spaces between its columns."""
    table = Table(first, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _summary(page: dict[str, Any]) -> str:
    queue, predictor = page["queue"], page["predictor"]
    oldest = "" if queue["oldest_ms"] is None else f", the oldest for {queue['oldest_ms'] / 1000:.1f} s"
    return (
        f"Queue: {queue['waiting']:,} waiting with {queue['waiting_tokens']:,} tokens{oldest} ({queue['policy']})\n"
        f"Predictor: {predictor['source']}, {predictor['seen']} answers seen since the start, mean error "
        f"{_figure(predictor['mae'])} tokens, p90 covers {_percent(predictor['p90_coverage'])}"
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
