"""System prompts for rows that have none but name their application and task.

The file is a JSON object by application. Each application has texts by task (shell patterns) and a `default`. Its
`task_format`, such as `<src>-><dst>`, names the parts of a task that replace `{src}` and `{dst}` in the text.
"""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from gateway.errors import RowError
from gateway.training.rows import PastRow

_FORMAT = "task_format"
_DEFAULT = "default"


class Instructions:
    """The texts of one file.

    >>> instructions = Instructions({"CT": {"default": "Translate {src} to {dst}.", "task_format": "<src>-><dst>"}})
    >>> instructions.text("CT", "go->cpp")
    'Translate go to cpp.'
    """

    def __init__(self, texts: dict[str, dict[str, str]]) -> None:
        self._texts = texts

    @classmethod
    def load(cls, path: Path) -> "Instructions":
        """Read a file.

        Raises:
            RowError: the file cannot be read, or does not have this form.
        """
        try:
            return cls(msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, str]]))
        except OSError as error:
            raise RowError(f"{path}: {error.strerror or error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RowError(f"{path}: {str(error).replace('`', '')}") from error

    def text(self, app: str | None, task: str | None) -> str | None:
        """Return the system prompt of an application's task; None if there is none."""
        texts = self._texts.get(app or "", {})
        patterns = (pattern for pattern in texts if pattern not in {_FORMAT, _DEFAULT})
        chosen = next((pattern for pattern in patterns if fnmatchcase(task or "", pattern)), _DEFAULT)
        text = texts.get(chosen)
        if text is None:
            return None
        for name, part in _parts(task or "", texts.get(_FORMAT, "")).items():
            text = text.replace(f"{{{name}}}", part)
        return text

    def apply(self, rows: Iterable[PastRow]) -> Iterator[PastRow]:
        """Yield the rows; rows without a system prompt get that of their task."""
        for row in rows:
            if row.system is None and row.messages is None:
                row.system = self.text(row.app, row.task)
            yield row


NO_INSTRUCTIONS = Instructions({})


def _parts(task: str, task_format: str) -> dict[str, str]:
    pattern = re.sub(r"<(\w+)>", r"(?P<\1>.+)", re.escape(task_format.partition(",")[0]))
    match = re.fullmatch(pattern, task)
    return match.groupdict() if match else {}
