"""A limit on the bytes of all request bodies that the gateway holds, decompressed, until their requests end."""

import asyncio

from gateway.errors import TooManyBodyBytes

DEFAULT_BYTES = 128 * 1024 * 1024

UNPACKED_AT_ONCE = 2
"""Most large bodies that are decompressed at the same time: their size counts only when it is known."""


class BodyBudget:
    """The bytes that bodies may have together.

    Args:
        max_bytes: of all bodies.
        max_body_bytes: of one body; a holder may always have one of that size, and otherwise half of all bytes.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES, max_body_bytes: int = 0) -> None:
        self.unpacking = asyncio.Semaphore(UNPACKED_AT_ONCE)
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._max_holder_bytes = max(max_bytes // 2, max_body_bytes)
        self._held_by: dict[str, int] = {}

    def account(self, holder: str) -> "BodyAccount":
        """Return an account for one body; `holder` is the application or the address that sends it."""
        return BodyAccount(self, holder)

    def add(self, holder: str, size: int) -> None:
        """Count bytes of a holder.

        Raises:
            TooManyBodyBytes: these bytes are too many; they are not counted.
        """
        held = self._held_by.get(holder, 0) + size
        if self.held_bytes + size > self._max_bytes:
            raise TooManyBodyBytes("The gateway holds too many bytes of requests")
        if held > self._max_holder_bytes:
            raise TooManyBodyBytes("Your requests have too many bytes together")
        self.held_bytes += size
        self._held_by[holder] = held

    def remove(self, holder: str, size: int) -> None:
        """Stop counting bytes of a holder."""
        self.held_bytes -= size
        left = self._held_by[holder] - size
        if left:
            self._held_by[holder] = left
        else:
            del self._held_by[holder]


class BodyAccount:
    """The bytes of one body in the budget."""

    def __init__(self, budget: BodyBudget, holder: str) -> None:
        self.budget = budget
        self._holder = holder
        self._size = 0

    def add(self, size: int) -> None:
        """Count further bytes; raises `TooManyBodyBytes`."""
        if size:
            self.budget.add(self._holder, size)
            self._size += size

    def release(self) -> None:
        """Stop counting: the request has ended."""
        if self._size:
            self.budget.remove(self._holder, self._size)
            self._size = 0
