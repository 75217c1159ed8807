"""The dispatcher, which alone changes the scheduler's state, and the proxies, which send requests to engines."""
