"""The single writer of the scheduler's state, and the proxies that bring requests to engines."""
