"""Wires the parts together and runs the gateway on a socket. No other package wires parts together."""
