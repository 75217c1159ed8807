"""Helpers that create a `BackendLoad`, scrape it and test a request on it."""

from dataclasses import replace

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.demand import LengthBias
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendState, Request
from gateway.scheduling.placement import find_place
from gateway.scheduling.queue import WaitingRequest

SURE = LengthQuantiles.of((1e6,) * 6, cap=10)
STATE = BackendState("gpu-0", frozenset({"llama"}), healthy=True, kv_capacity_tokens=1000)


def request(id="a", prompt=100, *, output=10, sequences=1, **other_fields):
    length = replace(SURE, cap=output)
    return Request(id, "llama", prompt, length, 0.0, 60.0, sequences=sequences, **other_fields)


def waiting(request):
    return WaitingRequest(request, 1.0, request.length.mean())


def admit(load, request, now=0.0):
    load.admit(request, request.length, load.ledger.forecast(request, request.length), now)


def load_of(*requests, **state):
    load = BackendLoad(replace(STATE, **state))
    for each in requests:
        admit(load, each)
    return load


def scrape(load, now=0.0, **changed):
    load.on_scrape(replace(load.state, **changed), now)


def reason(load, new=None, now=0.0):
    """Return the reason of the cheap check against a request."""
    return load.quick_reason(waiting(new or request("new")), now)


def has_room(load, new):
    """Return whether a backend can take a request; a dispatch makes the same decision."""
    return find_place(waiting(new), [load], LengthBias(), 0.0) is not None
