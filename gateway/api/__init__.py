"""The HTTP edge: routes, bodies, keys, errors in the caller's own API."""
