"""Metrics and logs. They contain no prompt text, no secrets, and no user names."""
