"""Progress on stderr, for what takes longer than a breath."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.options import err


@contextmanager
def bytes_read(what: str, paths: Sequence[Path], *, times: int = 1) -> Iterator[Callable[[int], None]]:
    """Show how much of the files has been read, `times` times over; gives the function to tell it to."""
    total = times * sum(path.stat().st_size for path in paths if path.is_file())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
