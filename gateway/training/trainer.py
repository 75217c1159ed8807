"""The training process: takes an order on stdin, trains, prints a report, and ends.

    python -m gateway.training.trainer    reads one line, a `TrainingOrder`; prints one, a `TrainingReport`

It runs at the lowest priority. The order comes on stdin and not as arguments, which every user of the machine can read
and which would show the database's password. Stdin then stays open: when it ends, whoever gave the order is gone, and
so is the trainer. It writes nothing before its end, so that it may be killed at any moment.
"""

import asyncio
import os
import sys
import threading

import msgspec

from gateway.storage.database import create_database_engine
from gateway.training.report import TrainingOrder, TrainingReport

LOWEST_PRIORITY = 19
ORPHANED = 3


def main() -> None:
    """Follow one order."""
    os.nice(LOWEST_PRIORITY)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=TrainingOrder)
    threading.Thread(target=_end_with_parent, name="stdin-watch", daemon=True).start()
    report = asyncio.run(_follow(order))
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.flush()


async def _follow(order: TrainingOrder) -> TrainingReport:
    from gateway.training.training import train  # takes seconds to import, and those at the lowest priority

    engine = create_database_engine(order.database_url, pool_size=2)
    try:
        return await train(engine, order)
    finally:
        await engine.dispose()


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        continue
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
