"""What is told of a backend's health by the requests that it gets."""

from typing import Protocol

from gateway.errors import BackendError


class HealthListener(Protocol):
    """Hears what became of each attempt; `sent_s` is when it was sent, in monotonic seconds."""

    def note_failure(self, name: str, error: BackendError, sent_s: float | None = None) -> None:
        """Hear that a request failed on a backend."""
        ...

    def note_answer(self, name: str, sent_s: float, *, whole: bool) -> None:
        """Hear that a backend answers; `whole` when the answer came to its end."""
        ...


class Unheard:
    """Listens to nobody."""

    def note_failure(self, name: str, error: BackendError, sent_s: float | None = None) -> None:
        """Do nothing."""

    def note_answer(self, name: str, sent_s: float, *, whole: bool) -> None:
        """Do nothing."""
