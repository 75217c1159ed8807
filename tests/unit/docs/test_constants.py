"""Numbers that the documentation quotes from the code are the code's numbers.

A page quotes a constant by a link to it: `[0.97](../gateway/scheduling/scrape_estimates.py#TARGET)`. The fragment may
also name a field with a default, `#TimeoutSettings.request_s`, or a default of a parameter, `#import_rows.batch_size`.
"""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.docs.markdown import ROOT, Link, pages, relative_links

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBER = re.compile(r"(?P<sign>-?)(?P<digits>\d+(?:[   ,]\d{3})*(?:\.\d+)?)\s*(?P<unit>.*)")
FACTORS = {
    "%": 0.01,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "million": 1e6,
    "ms": 1e-3,
    "minutes": 60,
    "hours": 3600,
}
QUOTES = [link for page in pages() for link in relative_links(page) if link.fragment and link.path.suffix == ".py"]


def read_quote(text: str) -> str | float:
    """Return the value that a link's text states: a number with an optional unit, a number word, or a name."""
    text = text.strip("`")
    if text in WORDS:
        return WORDS.index(text)
    if not (found := NUMBER.fullmatch(text)):
        return text
    number = float(re.sub(r"[^\d.]", "", found["digits"])) * (-1 if found["sign"] else 1)
    return number * FACTORS.get(found["unit"], 1)


def read_constant(path: Path, name: str) -> Any:
    """Return a module's constant, a class's constant or field default, or a parameter's default."""
    value = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for part in name.split("."):
        value = _member(value, part)
    return value


def _member(owner: Any, name: str) -> Any:
    if dataclasses.is_dataclass(owner):
        return {field.name: field.default for field in dataclasses.fields(owner)}[name]
    if inspect.isclass(owner) and issubclass(owner, msgspec.Struct):
        return {field.name: field.default for field in msgspec.structs.fields(owner)}[name]
    if inspect.isfunction(owner):
        return inspect.signature(owner).parameters[name].default
    return getattr(owner, name)


@pytest.mark.parametrize("quote", QUOTES, ids=str)
def test_quoted_number_is_the_constant(quote: Link) -> None:
    stated, value = read_quote(quote.text), read_constant(quote.path, quote.fragment)
    assert stated == (pytest.approx(value) if isinstance(value, int | float) else value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.97", 0.97), ("2 %", 0.02), ("200 000", 200_000), ("8 MiB", 8 * 1024**2), ("two", 2), ("`hrrn`", "hrrn")],
)
def test_quote_is_read_as_people_read_it(text: str, value: str | float) -> None:
    assert read_quote(text) == pytest.approx(value) if isinstance(value, float) else read_quote(text) == value
