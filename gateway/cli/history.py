"""`magnus history import`: loads past requests into the database."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.api.auth import application_of_system_prompt
from gateway.cli.options import ConfigOption, JsonOption, bad_input, bytes_read, console, err, print_json, read_settings
from gateway.cli.resources import configured_embedder, on_database
from gateway.config import Settings
from gateway.errors import RowError
from gateway.training.corpus import Corpus, survey
from gateway.training.importing import ImportReport, ImportRules, import_corpus
from gateway.training.instructions import NO_INSTRUCTIONS, Instructions

app = typer.Typer(help="Past requests.", no_args_is_help=True, rich_markup_mode=None)

Files = Annotated[list[Path], typer.Argument(help="Files of past requests (JSON lines or CSV traces, plain or .gz).")]
InstructionsOption = Annotated[
    Path | None, typer.Option("--instructions", help="JSON file of system prompts by application and task.")
]


@app.callback()
def _history() -> None:
    """Past requests."""


@app.command("import")
def import_(
    files: Files, instructions: InstructionsOption = None, as_json: JsonOption = False, config: ConfigOption = None
) -> None:
    """Load past requests into the database, all rows of all files or none, so that predictions start with history.

    A running gateway uses them in its next training, and its memory of answers contains them after its next start.
    """
    settings = read_settings(config)
    corpus = read_through(files, instructions)
    embedder = configured_embedder(settings)

    async def work(engine: AsyncEngine) -> None:
        try:
            with bytes_read("Importing", files) as on_bytes:
                report = await import_corpus(engine, corpus, embedder, _rules(settings), on_bytes)
        except RowError as error:
            bad_input(error)
        _print_report(report, settings, as_json=as_json)

    on_database(settings, work)


def read_through(files: list[Path], instructions: Path | None) -> Corpus:
    """Check all files. A wrong row ends the command before it has changed anything."""
    try:
        texts = Instructions.load(instructions) if instructions else NO_INSTRUCTIONS
        with bytes_read("Checking", files) as on_bytes:
            return survey(files, on_bytes, texts)
    except RowError as error:
        bad_input(error)


def _rules(settings: Settings) -> ImportRules:
    return ImportRules(
        now=datetime.now(UTC),
        keep_days=settings.database.retention_days,
        store_prompts=settings.database.store_prompts,
        app_of=application_of_system_prompt,
    )


def _print_report(report: ImportReport, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        console.print(f"Imported {report.rows:,} requests of {report.apps} applications and {report.users:,} users.")
    if report.expired:
        days = settings.database.retention_days
        err.print(
            f"magnus: {report.expired:,} of them are older than database.retention_days = {days} and will be deleted",
            style="yellow",
            soft_wrap=True,
        )
