r"""Parser for the Prometheus text format. It reads only the families that a snapshot needs.

Pure. No function raises. A line that cannot be parsed is skipped, because a missing gauge does less harm than a failed
scrape.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]++|\\.)*+)"[ \t]*(?:,|$)')
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+"
    r'(?:\{((?:[^"}]++|"(?:[^"\\]++|\\.)*+")*+)\})?'  # a brace inside a label's value does not end the labels
    r"[ \t]*+(?<=[ \t}])([-+.0-9A-Za-z]++)"
    r"(?:[ \t]++-?[0-9]++)?[ \t]*+\r?"  # timestamp
)
_ESCAPE = re.compile(r'\\([\\"n])')
_COUNT = re.compile(r"[0-9]{1,18}")
_ABSURD = 2.0**63


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page. The value may be NaN or infinite."""

    name: str
    labels: Mapping[str, str]
    value: float


def read_samples(page: bytes, names: Iterable[str]) -> dict[str, list[Sample]]:
    r"""Return the samples of the families `names`, in the page's order. A missing family has an empty list.

    A last line without a newline is ignored: the page was cut off, so its number may be incomplete.

    >>> read_samples(b'jobs{queue="a"} 2\njobs{queue="b"} 1\nseconds 0.5\njobs{queue="c"} 1', ["jobs"])["jobs"]
    [Sample(name='jobs', labels={'queue': 'a'}, value=2.0), Sample(name='jobs', labels={'queue': 'b'}, value=1.0)]
    """
    found: dict[str, list[Sample]] = {name: [] for name in names}
    wanted = tuple(found)
    # Not splitlines(): it also splits at characters that a label's value may contain.
    for line in page.decode("utf-8", "replace").split("\n")[:-1]:
        if line.startswith(wanted):
            sample = _read_sample(line)
            if sample is not None and sample.name in found:
                found[sample.name].append(sample)
    return found


def per_rank(samples: Iterable[Sample], label: str) -> dict[str, float]:
    """Return the value of each rank. `label` is the label that holds the rank; without it the rank is "".

    Negative, NaN and very large values are left out. If a rank has several series (one per tensor-parallel worker),
    they have the same value, and it counts once.
    """
    return {s.labels.get(label, ""): s.value for s in samples if 0 <= s.value < _ABSURD}


def total(values: Mapping[str, float]) -> int | None:
    """Return the sum over all ranks, or None if no rank has a value."""
    return round(sum(values.values())) if values else None


def used_tokens(usage: Mapping[str, float], capacity: Mapping[str, float], fallback_tokens: int | None) -> int | None:
    """Return the tokens in use over all ranks.

    Args:
        usage: the used share of the KV cache by rank; 1 is all of it.
        capacity: the size of the KV cache in tokens by rank, as the engine reports it.
        fallback_tokens: the size over all ranks, used if the engine reports none.

    Returns:
        None if the size of a rank is unknown.
    """
    if not capacity and fallback_tokens is not None:
        capacity = dict.fromkeys(usage, fallback_tokens / max(1, len(usage)))
    if not usage or not usage.keys() <= capacity.keys():
        return None
    return round(sum(min(share, 1.0) * capacity[rank] for rank, share in usage.items()))


def read_count(text: str | None) -> int | None:
    """Return a label's value as an integer, or None. vLLM writes "None" for an unknown value."""
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
