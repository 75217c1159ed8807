import io
import json
import logging
import sys
from contextlib import contextmanager

import pytest
import structlog

from gateway.telemetry.logs import configure


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def configured(level, style, stream=None):
    """Log to a stream of the test's own; afterwards logging is as it was before."""
    loggers = [logging.getLogger(name) for name in (None, "httpx", "httpx2", "aiohttp", "alembic", "asyncio")]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    loggers[0].handlers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream or io.StringIO())
        try:
            configure(level, style)
            yield sys.stderr
        finally:
            loggers[0].handlers = handlers
            for logger, was in zip(loggers, levels, strict=True):
                logger.setLevel(was)
            structlog.reset_defaults()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_of_json_says_what_when_and_where():
    with configured("info", "json") as stderr:
        logging.getLogger("gateway.server.app").info("Warm start with %d answers", 7)
    (line,) = lines(stderr)
    assert (line["event"], line["level"], line["logger"]) == ("Warm start with 7 answers", "info", "gateway.server.app")
    assert line["timestamp"].endswith("Z")


def test_extra_fields_are_fields():
    with configured("info", "json") as stderr:
        logging.getLogger("x").warning("away", extra={"backend": "gpu-0"})
    assert lines(stderr)[0]["backend"] == "gpu-0"


def test_structlog_s_lines_are_the_same():
    with configured("info", "json") as stderr:
        structlog.get_logger("x").info("away", backend="gpu-0")
    (line,) = lines(stderr)
    assert (line["event"], line["backend"], line["level"]) == ("away", "gpu-0", "info")


def test_a_traceback_is_one_field_of_one_line():
    with configured("info", "json") as stderr:
        try:
            raise ZeroDivisionError("no")
        except ZeroDivisionError:
            logging.getLogger("x").exception("failed")
    (line,) = lines(stderr)
    assert "ZeroDivisionError: no" in line["exception"]


def test_less_than_the_level_is_not_written():
    with configured("warning", "json") as stderr:
        logging.getLogger("x").info("quiet")
        logging.getLogger("x").warning("loud")
    assert [line["event"] for line in lines(stderr)] == ["loud"]


def test_libraries_that_chat_are_told_not_to():
    with configured("debug", "json") as stderr:
        logging.getLogger("httpx2").info("GET /metrics")
        logging.getLogger("httpx2").warning("odd")
    assert [line["event"] for line in lines(stderr)] == ["odd"]


def test_auto_is_json_where_nobody_reads_along():
    with configured("info", "auto") as stderr:
        logging.getLogger("x").info("hello")
    assert lines(stderr)[0]["event"] == "hello"


@pytest.mark.parametrize("style", ["auto", "text"])
def test_a_terminal_gets_text(style):
    with configured("info", style, Terminal()) as stderr:
        logging.getLogger("x").info("hello")
    assert "hello" in stderr.getvalue()
    assert not stderr.getvalue().startswith("{")
