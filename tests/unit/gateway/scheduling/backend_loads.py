"""A backend's load, and what is asked of it, in short."""

from dataclasses import replace

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendState, Request

SURE = LengthQuantiles.of((1e6,) * 6, cap=10)
STATE = BackendState("gpu-0", frozenset({"llama"}), healthy=True, kv_capacity_tokens=1000)


def request(id="a", prompt=100, *, output=10, sequences=1, **kept):
    length = replace(SURE, cap=output)
    return Request(id, "llama", prompt, length, 0.0, 60.0, sequences=sequences, **kept)


def enter(load, each, now=0.0):
    load.admit(each, each.length, load.ledger.forecast(each, each.length), now)


def load_of(*requests, **known):
    load = BackendLoad(replace(STATE, **known))
    for each in requests:
        enter(load, each)
    return load


def look(load, now=0.0, **seen):
    load.see(replace(load.state, **seen), now)


def takes(load, each=None, *, tokens=110, now=0.0):
    return load.can_take(each or request("new"), tokens, now)


def has_room(load, each):
    tokens = each.prompt_tokens + each.length.cap
    return load.has_room(each, tokens, load.ledger.forecast(each, each.length))
