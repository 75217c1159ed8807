"""The HTTP edge: routes, request bodies, API keys, and errors in the format of the client's API."""
