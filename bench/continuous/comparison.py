"""Results next to what they are compared with: dispatch without a queue, and the same policy with true lengths."""

from collections.abc import Iterable, Sequence

import msgspec

from bench.continuous.grid import TRUE_LENGTHS, Section
from bench.continuous.trials import TrialResult
from gateway.simulation.core import DIRECT
from gateway.simulation.report import SimulationReport


class Compared(msgspec.Struct, frozen=True):
    """A run's figures, and their ratios to direct dispatch of the same arrivals.

    A ratio is None if there is no run to compare with, or its figure is 0.

    Attributes:
        clairvoyant_x: mean time over the mean time of the same policy with true lengths.
    """

    workload: str
    section: Section
    engines: int
    load: float
    policy: str
    variant: str
    requests: int
    report: SimulationReport
    mean_x: float | None
    p50_x: float | None
    p99_x: float | None
    ttft_x: float | None
    short_p50_x: float | None
    tok_per_s_x: float | None
    preemptions_x: float | None
    clairvoyant_x: float | None


def compare(results: Sequence[TrialResult]) -> list[Compared]:
    """Compare each run with direct dispatch, and with the same policy with true lengths."""
    plain = {(*_conditions(one), one.policy): one.report for one in results if not one.variant}
    return [
        _compared(
            one,
            plain.get((*_conditions(one), DIRECT)) if one.section is not Section.OVERLOAD else None,
            plain.get((*_conditions(one), one.policy + TRUE_LENGTHS)) if not one.variant else None,
        )
        for one in results
    ]


def sections(compared: Iterable[Compared]) -> dict[tuple[str, Section, int], list[Compared]]:
    """Group results by workload, section and number of engines, in their order."""
    groups: dict[tuple[str, Section, int], list[Compared]] = {}
    for one in compared:
        groups.setdefault((one.workload, one.section, one.engines), []).append(one)
    return groups


def _conditions(one: TrialResult) -> tuple[str, Section, int, float]:
    return one.workload, one.section, one.engines, one.load


def _compared(one: TrialResult, direct: SimulationReport | None, true_lengths: SimulationReport | None) -> Compared:
    def ratio(name: str, base: SimulationReport | None) -> float | None:
        below = getattr(base, name) if base else 0.0
        return getattr(one.report, name) / below if below else None

    return Compared(
        workload=one.workload,
        section=one.section,
        engines=one.engines,
        load=one.load,
        policy=one.policy,
        variant=one.variant,
        requests=one.requests,
        report=one.report,
        mean_x=ratio("mean_s", direct),
        p50_x=ratio("p50_s", direct),
        p99_x=ratio("p99_s", direct),
        ttft_x=ratio("ttft_mean_s", direct),
        short_p50_x=ratio("short_p50_s", direct),
        tok_per_s_x=ratio("tok_per_s", direct),
        preemptions_x=ratio("preemptions", direct),
        clairvoyant_x=ratio("mean_s", true_lengths),
    )
