"""What crosses the wire, as pure functions: request fields, SSE, usage, error bodies, translation between APIs."""
