"""The training process: reads an order from stdin, trains, prints a report, and ends.

    python -m gateway.training.trainer    reads one line, a `TrainingOrder`; prints one line, a `TrainingReport`

It runs at the lowest priority. The order comes on stdin, because every user of the machine can read arguments and the
order contains the database's password. Stdin then stays open; when it ends, the parent process has ended and the
trainer ends too. The trainer writes to the database only at its end, so it can be killed at any moment.
"""

import asyncio
import os
import sys
import threading

import msgspec

from gateway.storage.database import create_database_engine
from gateway.training.process import TrainingOrder, TrainingReport

LOWEST_PRIORITY = 19
ORPHANED = 3


def main() -> None:
    """Run one training."""
    os.nice(LOWEST_PRIORITY)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=TrainingOrder)
    threading.Thread(target=_end_with_parent, name="stdin-watch", daemon=True).start()
    report = asyncio.run(_train(order))
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.flush()


async def _train(order: TrainingOrder) -> TrainingReport:
    from gateway.training.training import train  # the import takes seconds; here it runs at the lowest priority

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
