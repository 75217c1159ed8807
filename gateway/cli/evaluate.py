"""`magnus evaluate`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli import measure
from gateway.cli.history import Files, InstructionsOption, read_through
from gateway.cli.options import ConfigOption, JsonOption, failed, print_json, read_settings

Online = Annotated[bool, typer.Option("--online", help="In the order of time, learning from each row after it.")]
Plots = Annotated[Path | None, typer.Option(file_okay=False, help="Folder for pictures, PNG and SVG.")]


def evaluate(
    files: Files,
    online: Online = False,
    plots: Plots = None,
    instructions: InstructionsOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Measure prediction on past requests: trained on 70 % of them, measured on the rest, groups kept together.

    No database is touched. Of more rows than fit into memory a part is drawn.
    """
    settings = read_settings(config)
    if plots and find_spec("matplotlib") is None:
        failed("--plots needs matplotlib: pip install 'magnus-gateway[plots]'")
    rows = measure.read_rows(read_through(files, instructions), online=online)
    scored, model = measure.predict(rows, settings, online=online)
    if plots:
        measure.draw(plots, scored, model, online=online)
    if as_json:
        print_json(scored.metrics())
    else:
        measure.show(scored)
