"""The HTTP client towards engines: client, transport, connection, HTTP/1.1 parser."""
