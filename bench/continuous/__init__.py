"""`python -m bench continuous`: the gateway's queue against none, on engines with continuous batching."""
