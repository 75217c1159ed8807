"""The backends: which exist (`manager`, `discovery`), their state (`pool`, `entry`) and their circuits (`breaker`)."""
