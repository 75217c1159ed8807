"""What one engine can do with a workload: the unit that loads are given in.

Saturation is the rate at which one engine answers a backlog so deep that it never runs dry, first come, first served,
while its memory is used as fully as it can be without ever preempting: a request goes in as soon as the true lengths
say that everything will still fit at its peak. It belongs to no policy: sending everything at once reaches less where
that preempts, a gateway that admits by predictions somewhat less where it must allow for them.
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
"""Part of the backlog that is sent before measuring: until then the engine has too few of the long answers."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """One engine under a backlog: requests and output tokens a second, and the mean time of a request in the engine."""

    req_per_s: float
    tok_per_s: float
    service_s: float


def saturation(backlog: list[Arrival], config: EngineConfig) -> Saturation:
    """Measure one engine.

    Requests a second are output tokens a second over the backlog's mean answer, so that it matters little which answers
    happen to end while measuring.

    Args:
        backlog: many times what the engine runs at once; requests that it cannot hold are left out.
        config: of the engine.

    Raises:
        ValueError: the engine can hold none of them.
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
        full = full and not step.finished  # with the truth known, the peak stays what it is until somebody ends
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
    """Fills an engine as far as the truth allows."""

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
        """Tokens that the engine will generate."""
        return min(arrival.output_tokens, self._config.context_tokens - arrival.prompt_tokens)

    def admit(self, arrival: Arrival) -> bool:
        """Send a request if everything will fit to its end."""
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
        """Whether the peak stays in memory: max over j of the sum of k_i + r_j over those with r_i >= r_j.

        In blocks: each sequence may hold one that is nearly empty.
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
