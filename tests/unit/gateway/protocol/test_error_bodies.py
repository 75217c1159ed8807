import json

from gateway.errors import BackendRefused, InvalidRequest
from gateway.protocol.error_bodies import openai_error, openai_error_event


def test_an_error_has_openai_s_four_fields():
    assert json.loads(openai_error(InvalidRequest('role: "x"', param="messages[0].role"))) == {
        "error": {
            "message": 'role: "x"',
            "type": "invalid_request_error",
            "param": "messages[0].role",
            "code": "invalid_request",
        }
    }


def test_an_engine_s_error_keeps_its_fields():
    refused = BackendRefused("too long", status=400, type="BadRequestError", param="prompt", code=400)
    fields = json.loads(openai_error(refused))["error"]
    assert fields == {"message": "too long", "type": "BadRequestError", "param": "prompt", "code": 400}


def test_an_error_within_a_stream_is_one_event_whatever_its_text():
    event = openai_error_event(InvalidRequest("two\n\nparagraphs"))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:])["error"]["message"] == "two\n\nparagraphs"
