"""Results beside what they are compared with: no queue at all, and the same policy with the truth."""

from collections.abc import Iterable, Sequence

import msgspec

from bench.continuous.grid import Section
from bench.continuous.trials import Tried
from gateway.simulation.core import DIRECT
from gateway.simulation.experiment import CLAIRVOYANT
from gateway.simulation.report import SimulationReport


class Compared(msgspec.Struct, frozen=True):
    """A run's figures, and as multiples of direct dispatch's of the same arrivals; None where there is no such run.

    Attributes:
        preemptions_x: preemptions over direct's; None where that has none.
        clairvoyant_x: mean time over that of the same policy with true lengths.
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


def compare(tried: Sequence[Tried]) -> list[Compared]:
    """Set each run beside direct dispatch, and beside its clairvoyant."""
    plain = {(*_conditions(one), one.policy): one.report for one in tried if not one.variant}
    return [
        _compared(
            one,
            plain.get((*_conditions(one), DIRECT)) if one.section is not Section.OVERLOAD else None,
            plain.get((*_conditions(one), one.policy + CLAIRVOYANT)) if not one.variant else None,
        )
        for one in tried
    ]


def sections(compared: Iterable[Compared]) -> dict[tuple[str, Section, int], list[Compared]]:
    """Group results by workload, section and size of the fleet, in their order."""
    groups: dict[tuple[str, Section, int], list[Compared]] = {}
    for one in compared:
        groups.setdefault((one.workload, one.section, one.engines), []).append(one)
    return groups


def _conditions(one: Tried) -> tuple[str, Section, int, float]:
    return one.workload, one.section, one.engines, one.load


def _compared(one: Tried, direct: SimulationReport | None, clairvoyant: SimulationReport | None) -> Compared:
    own = one.report

    def times(name: str, base: SimulationReport | None) -> float | None:
        below = getattr(base, name) if base else 0.0
        return getattr(own, name) / below if below else None

    return Compared(
        workload=one.workload,
        section=one.section,
        engines=one.engines,
        load=one.load,
        policy=one.policy,
        variant=one.variant,
        requests=one.requests,
        report=own,
        mean_x=times("mean_s", direct),
        p50_x=times("p50_s", direct),
        p99_x=times("p99_s", direct),
        ttft_x=times("ttft_mean_s", direct),
        short_p50_x=times("short_p50_s", direct),
        tok_per_s_x=times("tok_per_s", direct),
        preemptions_x=times("preemptions", direct),
        clairvoyant_x=times("mean_s", clairvoyant),
    )
