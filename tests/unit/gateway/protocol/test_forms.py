import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.forms import read_model, with_model, without_privileges

FORM = "multipart/form-data; boundary=XX"
JSON = "application/json"


def form(*fields):
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"
        for name, value, more in fields
    ]
    return b"".join(parts) + b"--XX--\r\n"


AUDIO = ("file", b'\x00\xff\r\nname="model"\r\n\r\nx' * 10, '; filename="a.wav"')
SPOKEN = form(AUDIO, ("model", b"whisper", ""), ("language", b"en", ""))


@pytest.mark.parametrize(
    ("body", "kind", "model"),
    [
        (b'{"model": "m", "input": ["x"]}', JSON, "m"),
        (b'{"prompt": "x"}', JSON, None),
        (b'{"model": 7}', JSON, None),
        (SPOKEN, FORM, "whisper"),
        (form(("model", b"whisper", ""), AUDIO), FORM, "whisper"),
        (form(AUDIO), FORM, None),
    ],
)
def test_the_model_is_a_field_of_the_body(body, kind, model):
    assert read_model(body, kind) == model


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"no", JSON), (b"[7]", JSON), (b"no form", FORM), (SPOKEN[:-9], FORM), (SPOKEN, "multipart/form-data")],
)
def test_a_body_that_does_not_have_its_content_type_is_rejected(body, kind):
    with pytest.raises(InvalidRequest):
        read_model(body, kind)


def test_only_the_model_is_rewritten():
    assert with_model(b'{"model": "a", "x": 1.50}', JSON, "b") == b'{"model":"b","x":1.50}'
    for order in (slice(None), slice(None, None, -1)):
        before = [AUDIO, ("model", b"whisper", "\r\nContent-Type: text/plain")][order]
        after = [AUDIO, ("model", rb"big\1", "\r\nContent-Type: text/plain")][order]
        assert with_model(form(*before), FORM, r"big\1") == form(*after)


def test_every_field_of_the_model_is_rewritten():
    fields = [("model", b"a", ""), AUDIO] * 20
    rewritten = [("model", b"bigger", ""), AUDIO] * 20
    assert with_model(form(*fields), FORM, "bigger") == form(*rewritten)


def test_a_client_chooses_neither_priority_nor_request_id_of_an_engine():
    body = b'{"model":"m","pri\\u006frity":-5,"request_id":"mine","x":1.50}'
    assert without_privileges(body, JSON, "ours") == b'{"model":"m","request_id":"ours","x":1.50}'
    assert without_privileges(SPOKEN, FORM, "ours") is SPOKEN
