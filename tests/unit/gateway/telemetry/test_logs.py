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
    """Log to a stream of the test, and restore the logging afterwards."""
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


def test_json_line_has_time_level_logger_and_message():
    with configured("info", "json") as stderr:
        logging.getLogger("gateway.server.app").info("Warm start with %d answers", 7)
    (line,) = lines(stderr)
    assert (line["event"], line["level"], line["logger"]) == ("Warm start with 7 answers", "info", "gateway.server.app")
    assert line["timestamp"].endswith("Z")


def test_extra_values_become_fields():
    with configured("info", "json") as stderr:
        logging.getLogger("x").warning("away", extra={"backend": "gpu-0"})
    assert lines(stderr)[0]["backend"] == "gpu-0"


def test_lines_of_structlog_have_the_same_format():
    with configured("info", "json") as stderr:
        structlog.get_logger("x").info("away", backend="gpu-0")
    (line,) = lines(stderr)
    assert (line["event"], line["backend"], line["level"]) == ("away", "gpu-0", "info")


def test_traceback_is_one_field_of_one_line():
    with configured("info", "json") as stderr:
        try:
            raise ZeroDivisionError("no")
        except ZeroDivisionError:
            logging.getLogger("x").exception("failed")
    (line,) = lines(stderr)
    assert "ZeroDivisionError: no" in line["exception"]


def test_records_below_the_level_are_not_written():
    with configured("warning", "json") as stderr:
        logging.getLogger("x").info("quiet")
        logging.getLogger("x").warning("loud")
    assert [line["event"] for line in lines(stderr)] == ["loud"]


def test_verbose_libraries_log_warnings_only():
    with configured("debug", "json") as stderr:
        logging.getLogger("httpx2").info("GET /metrics")
        logging.getLogger("httpx2").warning("odd")
    assert [line["event"] for line in lines(stderr)] == ["odd"]


def test_auto_writes_json_if_the_output_is_not_a_terminal():
    with configured("info", "auto") as stderr:
        logging.getLogger("x").info("hello")
    assert lines(stderr)[0]["event"] == "hello"


@pytest.mark.parametrize("style", ["auto", "text"])
def test_terminal_gets_text(style):
    with configured("info", style, Terminal()) as stderr:
        logging.getLogger("x").info("hello")
    assert "hello" in stderr.getvalue()
    assert not stderr.getvalue().startswith("{")
