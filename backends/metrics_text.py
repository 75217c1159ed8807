r"""Read the Prometheus text format: the few families that a snapshot needs, out of a page of hundreds.

Pure. Nothing here raises: a line that cannot be understood is skipped, for a gauge that is missing costs a little
knowledge and an exception would cost the engine.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]++|\\.)*+)"[ \t]*(?:,|$)')
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+"
    r'(?:\{((?:[^"}]++|"(?:[^"\\]++|\\.)*+")*+)\})?'  # a brace inside a label's value does not close the labels
    r"[ \t]*+(?<=[ \t}])([-+.0-9A-Za-z]++)"
    r"(?:[ \t]++-?[0-9]++)?[ \t]*+\r?"  # a time stamp
)
_ESCAPE = re.compile(r'\\([\\"n])')
_COUNT = re.compile(r"[0-9]{1,18}")
_ABSURD = 2.0**63


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page; the value may be NaN or infinite."""

    name: str
    labels: Mapping[str, str]
    value: float


def read_samples(page: bytes, names: Iterable[str]) -> dict[str, list[Sample]]:
    r"""Read the samples of the families `names`, in the page's order; a family that is not there has an empty list.

    The format ends every line in a newline: a last line without one is a page cut short, and its number may be too.

    >>> read_samples(b'jobs{queue="a"} 2\njobs{queue="b"} 1\nseconds 0.5\njobs{queue="c"} 1', ["jobs"])["jobs"]
    [Sample(name='jobs', labels={'queue': 'a'}, value=2.0), Sample(name='jobs', labels={'queue': 'b'}, value=1.0)]
    """
    found: dict[str, list[Sample]] = {name: [] for name in names}
    wanted = tuple(found)
    # Not splitlines(): a label's value may hold one of the many other characters that it takes for a line's end.
    for line in page.decode("utf-8", "replace").split("\n")[:-1]:
        if line.startswith(wanted):
            sample = _read_sample(line)
            if sample is not None and sample.name in found:
                found[sample.name].append(sample)
    return found


def per_rank(samples: Iterable[Sample], label: str) -> dict[str, float]:
    """Tell each rank's value, its rank being what `label` says ("" without one); junk values are left out.

    What a rank reports twice (a series per tensor-parallel worker) is the same number twice and counts once.
    """
    return {s.labels.get(label, ""): s.value for s in samples if 0 <= s.value < _ABSURD}


def total(values: Mapping[str, float]) -> int | None:
    """Add the ranks up; None where no rank said anything."""
    return round(sum(values.values())) if values else None


def used_tokens(usage: Mapping[str, float], capacity: Mapping[str, float], fallback_tokens: int | None) -> int | None:
    """Turn each rank's usage, a share of its KV cache, into tokens in use over all ranks.

    Args:
        usage: share in use by rank, 1 is all of it.
        capacity: tokens by rank, as the engine told.
        fallback_tokens: tokens of all ranks together, where the engine told none.

    Returns:
        None where a rank's share is of an unknown whole.
    """
    if not capacity and fallback_tokens is not None:
        capacity = dict.fromkeys(usage, fallback_tokens / max(1, len(usage)))
    if not usage or not usage.keys() <= capacity.keys():
        return None
    return round(sum(min(share, 1.0) * capacity[rank] for rank, share in usage.items()))


def read_count(text: str | None) -> int | None:
    """Read a label's value that ought to be a whole number; vLLM writes "None" for what it does not know."""
    return int(text) if text is not None and _COUNT.fullmatch(text) else None


def _read_sample(line: str) -> Sample | None:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        return None
    name, label_text, number = match.groups()
    labels = _read_labels(label_text or "")
    try:
        value = float(number)
    except ValueError:
        return None
    return None if labels is None else Sample(name, labels, value)


def _read_labels(text: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            return labels if not text[position:].strip(" \t") else None
        labels[match[1]] = _ESCAPE.sub(_unescape, match[2]) if "\\" in match[2] else match[2]
        position = match.end()
    return labels


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
