"""From the queue to an engine and back: the loop that owns the scheduler, the engines' pool, the relay of answers."""
