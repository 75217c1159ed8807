from datetime import UTC, datetime

import msgspec
import pytest

from gateway.prediction.prediction_input import PredictionInput
from gateway.storage.record import RequestRecord
from gateway.stored_text import MAX_STORED_CHARS, stored_text

HOSTILE = ["x" * 6000, "\0", "a\0b", "\ud800", "tail \udfff", "\U0001f600" * 5000, "\n" * 300]


def record(app: str = "a", model: str = "m", user: str | None = None) -> RequestRecord:
    return RequestRecord(
        id="1",
        request_id="r",
        arrived_at=datetime(2025, 3, 1, tzinfo=UTC),
        app=app,
        user=user,
        model=model,
        route="/v1/completions",
        stream=False,
        status="ok",
        http_status=200,
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_stored_text_fits_into_an_index_and_has_an_encoding(text):
    stored = stored_text(text)
    assert stored != text
    assert len(stored) <= MAX_STORED_CHARS
    assert "\0" not in stored
    assert len(stored.encode()) <= 4 * MAX_STORED_CHARS
    assert stored_text(stored) == stored


@pytest.mark.parametrize("text", ["", "ann", "two\nlines", "übel", "\U0001f600" * MAX_STORED_CHARS])
def test_ordinary_text_is_stored_as_it_is(text):
    assert stored_text(text) == text


def test_different_texts_stay_different():
    texts = {*HOSTILE, "x" * 6001, "\0\0", "a\0c", "a\ufffdb", "\ud801"}
    assert len({stored_text(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", HOSTILE)
def test_predictor_and_history_use_one_name(text):
    key = PredictionInput(text, text, text).key
    stored = record(app=text, model=text, user=text)
    assert (key.app, key.model, key.user) == (stored.app, stored.model, stored.user)


def test_long_name_in_a_record_of_an_older_version_is_shortened_when_it_is_read():
    line = msgspec.json.encode(record(user="ann")).replace(b"ann", b"x" * 6000)
    assert msgspec.json.decode(line, type=RequestRecord).user == stored_text("x" * 6000)
