"""The one who asked, as the relay sees it."""

from typing import Protocol


class Client(Protocol):
    """The one who asked."""

    @property
    def started(self) -> bool:
        """Whether a byte has gone out."""
        ...

    async def start(self, status: int, content_type: str, *, length: int | None) -> None:
        """Send the status and the headers."""
        ...

    async def send(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body; waits while the client is slow."""
        ...
