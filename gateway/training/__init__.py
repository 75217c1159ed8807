"""Training of the length model: past requests in, model versions out, of which the best serves."""
