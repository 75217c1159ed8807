"""The figures of one policy at one rate."""

import msgspec
import numpy as np

from bench.paper.run import RunResult


class PaperReport(msgspec.Struct, frozen=True):
    """Figures of one run.

    Throughput counts the answers that ended while requests still arrived. Answers that end later do not count.
    Response times are over all requests, from arrival to the end of the batch.

    Attributes:
        policy: the paper's name of the policy, or `ours`.
        rate: requests a second that arrive.
        n: number of requests.
        req_per_s: requests answered a second.
        tok_per_s: tokens generated a second, including those after an answer's own end.
        valid_tok_per_s: the same without those.
        mean_s: mean response time.
        p50_s: median response time.
        p99_s: 0.99-quantile of the response time.
        out_of_memory: batches that ran out of memory and were split.
        batch_size: mean requests in a batch; None without batches.
    """

    policy: str
    rate: float
    n: int
    req_per_s: float
    tok_per_s: float
    valid_tok_per_s: float
    mean_s: float
    p50_s: float
    p99_s: float
    out_of_memory: int
    batch_size: float | None

    def gain(self, baseline: "PaperReport") -> tuple[float, float]:
        """Return the relative change of throughput and of mean response time against a baseline."""
        return self.req_per_s / baseline.req_per_s - 1.0, self.mean_s / baseline.mean_s - 1.0


def report(policy: str, rate: float, result: RunResult) -> PaperReport:
    """Compute the figures of one run."""
    arrived = np.array([one.job.request.arrival_s for one in result.done])
    finished = np.array([one.finished_s for one in result.done])
    window_s = max(float(arrived.max()), 1e-9)
    inside = finished <= window_s
    generated = np.array([one.generated_tokens for one in result.done])
    valid = np.array([one.job.output_tokens for one in result.done])
    response = finished - arrived
    p50, p99 = np.quantile(response, (0.5, 0.99)).tolist()
    succeeded = result.batches - result.failures
    return PaperReport(
        policy=policy,
        rate=rate,
        n=len(result.done),
        req_per_s=float(inside.sum() / window_s),
        tok_per_s=float(generated[inside].sum() / window_s),
        valid_tok_per_s=float(valid[inside].sum() / window_s),
        mean_s=float(response.mean()),
        p50_s=p50,
        p99_s=p99,
        out_of_memory=result.failures,
        batch_size=len(result.done) / succeeded if succeeded else None,
    )
