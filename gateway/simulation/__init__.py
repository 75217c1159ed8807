"""Runs the gateway's scheduler on simulated engines in simulated time, for `magnus simulate`.

There are no sockets and no clock, and all randomness comes from a seed.
"""
