"""Prometheus' text format, written."""

from collections.abc import Mapping

from backends.simulator.observations import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4"


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    r"""Return one line.

    >>> sample("up", 1, {"engine": "0"})
    'up{engine="0"} 1.0'
    """
    pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in (labels or {}).items())
    return f"{name}{{{pairs}}} {float(value)}" if pairs else f"{name} {float(value)}"


def family(name: str, kind: str, *lines: str) -> str:
    """Return a metric's samples under its type."""
    return "\n".join((f"# TYPE {name} {kind}", *lines))


def histogram(name: str, observed: Histogram, labels: Mapping[str, str] | None = None) -> str:
    """Return a histogram's buckets, count and sum under its type."""
    base = dict(labels or {})
    buckets = [sample(f"{name}_bucket", count, {**base, "le": bound}) for bound, count in observed.cumulative()]
    totals = (sample(f"{name}_count", observed.count, base), sample(f"{name}_sum", observed.total, base))
    return family(name, "histogram", *buckets, *totals)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
