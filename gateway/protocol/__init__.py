"""Pure functions on the bytes of requests and answers: fields, edits, event streams, token counts, error bodies."""
