"""How the length model keeps learning: past requests in, versions out, of which the better one serves."""
