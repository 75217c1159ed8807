import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from backends.metrics_text import Sample, per_rank, read_count, read_samples, total, used_tokens

LABEL_TEXT = st.text(st.characters(codec="utf-8"))
LABELS = st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]*", fullmatch=True), LABEL_TEXT, max_size=4)


def write(name: str, labels: dict[str, str], value: str) -> bytes:
    def escape(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inside = ",".join(f'{label}="{escape(text)}"' for label, text in labels.items())
    return f"{name}{{{inside}}} {value}\n".encode()


def read(page: bytes, name: str = "jobs") -> list[Sample]:
    return read_samples(page, [name])[name]


def test_reads_a_recorded_page_as_the_reference_parser_does(vllm_page: bytes):
    families = text_string_to_metric_families(vllm_page.decode())
    expected = [Sample(s.name, s.labels, s.value) for family in families for s in family.samples]

    found = read_samples(vllm_page, {sample.name for sample in expected})

    assert sorted(map(repr, expected)) == sorted(repr(s) for samples in found.values() for s in samples)
    assert len(expected) > 50


@given(LABELS, st.floats(allow_nan=False))
def test_any_label_text_and_number_round_trip(labels: dict[str, str], value: float):
    assert read(write("jobs", labels, repr(value))) == [Sample("jobs", labels, value)]


@given(st.binary())
@example(b'jobs{a="')
@example(b"jobs{a=" * 10_000)
@example(b'jobs{a="\\' + b'"' * 10_000)
def test_invalid_lines_are_skipped(junk: bytes):
    good = b"\njobs 1\n"
    for page in (junk, b"jobs" + junk, b"jobs{" + junk, b'jobs{a="' + junk + b'"} 1'):
        assert read(page + good)[-1] == Sample("jobs", {}, 1.0)


@given(st.data())
def test_a_truncated_page_gives_a_prefix_of_the_whole_page(vllm_page: bytes, data: st.DataObject):
    names = ["vllm:request_generation_tokens_bucket", "vllm:cache_config_info", "vllm:prefix_cache_queries_total"]
    cut = vllm_page[: data.draw(st.integers(0, len(vllm_page)))]

    whole, part = read_samples(vllm_page, names), read_samples(cut, names)

    assert all(part[name] == whole[name][: len(part[name])] for name in names)


@pytest.mark.parametrize(
    ("number", "value"),
    [("2", 2.0), ("1.5e+09", 1.5e9), ("-3E-2", -0.03), ("+Inf", math.inf), ("-Inf", -math.inf)],
)
def test_reads_every_form_of_number(number: str, value: float):
    assert read(f"jobs {number}\n".encode()) == [Sample("jobs", {}, value)]


def test_reads_nan():
    assert math.isnan(read(b"jobs NaN\n")[0].value)


@pytest.mark.parametrize(
    "line",
    [
        b'jobs{queue="a"} 1',
        b'jobs{queue="a"} 1\r',
        b'jobs{queue="a",} 1',
        b'jobs { queue = "a" , }\t1',
        b'jobs{queue="a"} 1 1795330024390',
        b'jobs{queue="a"}1 -1 ',
    ],
)
def test_accepts_every_valid_line(line: bytes):
    assert read(line + b"\n") == [Sample("jobs", {"queue": "a"}, 1.0)]


@pytest.mark.parametrize(
    "line",
    [
        b"# jobs 1",
        b"jobs",
        b"jobs one",
        b"jobs 1_000",
        b"jobs 1 soon",
        b'jobs{queue="a" 1',
        b'jobs{queue="a} 1',
        b"jobs{queue=a} 1",
        b'jobs{queue="a"queue="b"} 1',
        b"jobs1",
        b"jobs_total 1",
    ],
)
def test_skips_every_invalid_line(line: bytes):
    assert read(line + b"\n") == []


def test_a_brace_or_comma_in_a_label_is_only_text():
    assert read(b'jobs{queue="a},b=\\"{"} 1\n') == [Sample("jobs", {"queue": 'a},b="{'}, 1.0)]


def test_a_missing_family_has_no_samples():
    assert read_samples(b"jobs 1\n", ["jobs", "hands"]) == {"jobs": [Sample("jobs", {}, 1.0)], "hands": []}


def test_ranks_skip_invalid_values_and_count_duplicates_once():
    page = b'jobs{r="0",tp="0"} 2\njobs{r="0",tp="1"} 2\njobs{r="1"} 3\n'
    page += b'jobs{r="2"} NaN\njobs{r="3"} +Inf\njobs{r="4"} -1\njobs{r="5"} 1e308\n'
    assert per_rank(read(page), "r") == {"0": 2.0, "1": 3.0}


def test_a_total_without_values_is_unknown_and_not_zero():
    assert total({}) is None
    assert total({"0": 0.0}) == 0
    assert total({"0": 2.0, "1": 3.0}) == 5


@pytest.mark.parametrize(
    ("usage", "capacity", "fallback_tokens", "used"),
    [
        ({"0": 0.25}, {"0": 1000.0}, None, 250),
        ({"0": 0.25, "1": 0.5}, {"0": 1000.0, "1": 2000.0}, None, 1250),
        ({"0": 0.25}, {"0": 1000.0}, 400, 250),
        ({"0": 0.25, "1": 0.5}, {}, 4000, 1500),
        ({"0": 1.5}, {"0": 1000.0}, None, 1000),
        ({"0": 0.25, "1": 0.5}, {"0": 1000.0}, None, None),
        ({"0": 0.25}, {}, None, None),
        ({}, {"0": 1000.0}, None, None),
        ({}, {}, 4000, None),
    ],
)
def test_used_tokens_need_a_known_capacity(
    usage: dict[str, float], capacity: dict[str, float], fallback_tokens: int | None, used: int | None
):
    assert used_tokens(usage, capacity, fallback_tokens) == used


@pytest.mark.parametrize(
    ("text", "count"),
    [("32", 32), ("None", None), ("", None), (None, None), ("-1", None), ("٣", None), ("9" * 9999, None)],
)
def test_a_count_is_an_integer_or_unknown(text: str | None, count: int | None):
    assert read_count(text) == count
