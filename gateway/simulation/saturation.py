"""The rate that one engine sustains for a workload. Loads are given as a share of it.

Saturation is measured with a backlog that never runs out, first come, first served. A request is admitted as soon as
the true lengths show that everything will still fit the memory at its peak. So memory is as full as it can be without
preemptions. No policy defines saturation: sending everything at once reaches less if that preempts, and a gateway that
admits by predictions reaches somewhat less because predictions are uncertain.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from backends.simulator.config import EngineConfig
from backends.simulator.engine import FcfsQueue, Sequence
from backends.simulator.engine.batched import BatchedStepEngine
from backends.simulator.engine.prefix_cache import PrefixCachingKV
from gateway.simulation.workload import Arrival

WARM_UP_SHARE = 0.25
"""Part of the backlog that is sent before measuring. Until then the engine runs too few of the long answers."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """What one engine sustains under a backlog.

    Attributes:
        req_per_s: requests a second.
        tok_per_s: output tokens a second.
        service_s: mean time of a request in the engine.
    """

    req_per_s: float
    tok_per_s: float
    service_s: float


def saturation(backlog: list[Arrival], config: EngineConfig) -> Saturation:
    """Measure what one engine sustains.

    Requests a second are output tokens a second over the backlog's mean answer. This way it matters little which
    answers end during the measurement.

    Args:
        backlog: many times the requests that the engine runs at once. Requests that it cannot hold are left out.
        config: settings of the engine.

    Raises:
        ValueError: the engine can hold none of the requests, or they are too few to fill it.
    """
    fitting = [arrival for arrival in backlog if arrival.prompt_tokens < config.context_tokens]
    if not fitting:
        raise ValueError("no prompt of the workload fits the engine's context")
    feed = _Feed(config)
    waiting, now, full = deque(fitting), 0.0, False
    tokens = measured_tokens = 0
    measured_from_s = 0.0
    sent_s: dict[str, float] = {}
    served_s: list[float] = []
    while waiting:
        while not full and waiting:
            full = not feed.admit(waiting[0])
            if not full:
                sent_s[waiting.popleft().id] = now
        now += (step := feed.engine.advance()).duration_s
        tokens += step.tokens
        full = full and not step.finished  # lengths are known, so the peak only changes when an answer ends
        served_s += [now - sent_s[str(request_id)] for request_id in step.finished]
        if len(waiting) > (1 - WARM_UP_SHARE) * len(fitting):
            measured_from_s, measured_tokens = now, tokens
    seconds = now - measured_from_s
    if not seconds:
        raise ValueError("the workload is too small to saturate an engine")
    tok_per_s = (tokens - measured_tokens) / seconds
    mean_tokens = float(np.mean([feed.answer_tokens(arrival) for arrival in fitting]))
    while feed.engine.running:
        now += (step := feed.engine.advance()).duration_s
        served_s += [now - sent_s[str(request_id)] for request_id in step.finished]
    return Saturation(tok_per_s / mean_tokens, tok_per_s, float(np.mean(served_s)))


class _Feed:
    """Sends requests to an engine as long as their true lengths fit its memory."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.engine = BatchedStepEngine(
            config.hardware.step_time,
            PrefixCachingKV(config.num_gpu_blocks, config.block_size),
            FcfsQueue(),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._final: dict[str, tuple[int, int]] = {}  # prompt tokens, final tokens

    def answer_tokens(self, arrival: Arrival) -> int:
        """Return the tokens that the engine will generate."""
        return min(arrival.output_tokens, self._config.context_tokens - arrival.prompt_tokens)

    def admit(self, arrival: Arrival) -> bool:
        """Send a request if everything will still fit until all answers end. Return whether it was sent."""
        if self.engine.running + self.engine.waiting >= self._config.max_num_seqs:
            return False
        answer = self.answer_tokens(arrival)
        lengths = arrival.prompt_tokens, arrival.prompt_tokens + answer
        if not self._fits(*lengths):
            return False
        self._final[arrival.id] = lengths
        self.engine.submit(Sequence(arrival.id, arrival.prompt_tokens, answer, answer))
        return True

    def _fits(self, prompt_tokens: int, final_tokens: int) -> bool:
        """Return whether the peak fits: max over j of the sum of k_i + r_j over all i with r_i >= r_j.

        k is what a sequence holds now, r what it will still generate. Memory is allocated in blocks, so each sequence
        may hold one block that is nearly empty.
        """
        self._final = {i: lengths for i, lengths in self._final.items() if self.engine.holds(i)}
        running = [(prompt + self.engine.generated(i), final) for i, (prompt, final) in self._final.items()]
        running.append((prompt_tokens, final_tokens))
        held, final = np.array(running).T
        left = final - held
        order = np.argsort(-left, kind="stable")
        sequences = np.arange(1, len(order) + 1)
        peak = np.max(np.cumsum(held[order]) + sequences * (left[order] + self._config.block_size - 1))
        return bool(peak <= self._config.capacity_tokens) or len(running) == 1
