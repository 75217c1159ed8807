"""Helpers that create sequences and run engines."""

from backends.simulator.engine import Sequence


def sequence(id, prompt=16, output=4, **fields):
    return Sequence(id=id, prompt_tokens=prompt, output_tokens=output, max_new_tokens=1000, **fields)


def run_to_end(engine):
    results = []
    while engine.running or engine.waiting:
        results.append(engine.step())
    return results
