"""Formats the result of a replay for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from gateway.demo.replay import ReplayReport


def replay_table(report: ReplayReport) -> RenderableType:
    """Return a table of the applications, and a summary below it."""
    table = Table("application", title="Replay")
    for column in ("requests", "stored requests", "output tokens", "stored tokens"):
        table.add_column(column, justify="right")
    for app in report.apps:
        counts = (app.sent, app.remembered_requests, app.output_tokens, app.remembered_output_tokens)
        table.add_row(app.app, *map(str, counts))
    errors = "".join(f"  {count} x {error}\n" for error, count in report.errors.items())
    verdict = "agree exactly" if report.history_agrees else "DO NOT AGREE"
    summary = (
        f"{report.answered} of {report.rows} rows answered, {report.failed} failed, "
        f"{report.wrong_length} with a length different from their row\n{errors}"
        f"{report.seconds:.1f} s, {report.req_per_s:.1f} requests a second; end to end: "
        f"mean {report.e2e_mean_s:.2f} s, p50 {report.e2e_p50_s:.2f} s, p99 {report.e2e_p99_s:.2f} s\n"
        f"the statistics of the gateway {verdict}: {len(report.apps)} applications, {report.users_compared} users"
    )
    return Group(table, summary)
