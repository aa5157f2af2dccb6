"""The log: a line for each request, whatever a client sends."""

import json
import logging
from collections.abc import Iterator

import pytest

from hetero.server.record import LOGGER, JsonFormat, Record, TextFormat, log_failure


class Lines(logging.Handler):
    """Both forms of what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.json: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(TextFormat().format(record))
        self.json.append(JsonFormat().format(record))


@pytest.fixture
def lines() -> Iterator[Lines]:
    found, level = Lines(), LOGGER.level
    LOGGER.addHandler(found)
    LOGGER.setLevel(logging.INFO)
    yield found
    LOGGER.removeHandler(found)
    LOGGER.setLevel(level)


@pytest.mark.parametrize(
    "path",
    [
        "/a\n18:00:00 info    invented",
        "/a\r\n18:00:00 info    invented",
        "/a\x0b\x0c\x1c\x85\u2028\u2029invented",  # where str.splitlines, editors and terminals break a line
        "/a\x1b[2K\x1b[1A\x9b1Ainvented",
        "/a\u202einvented\udc80",
        "/a 200 0.001 s id=invented",
    ],
)
def test_a_path_is_one_word_of_one_line(lines: Lines, path: str) -> None:
    Record("req_1", "GET", path, "127.0.0.1", status=404).log()
    for line in lines.text[0], lines.json[0]:
        assert line.isprintable() and len(line.splitlines()) == 1
    words = lines.text[0].split()
    assert words[2] == "GET" and words[3].startswith("/a") and "invented" in words[3] and words[4] == "404"
    assert json.loads(lines.json[0])["path"] == path


def test_what_clients_make_up_is_cut_and_told_apart(lines: Lines) -> None:
    names = ["a\nb", "c status=200", "tools[8].web_search: not offered", "plain"]
    Record("req_1", "X" * 5000, "/" * 20_000, "127.0.0.1", status=404, unknown=names).log()
    (text,), (document,) = lines.text, map(json.loads, lines.json)
    assert len(text) < 600 and len(text.splitlines()) == 1 and "//... 404" in text
    assert 'unknown="a\\nb","c status=200","tools[8].web_search: not offered",plain' in text
    assert len(document["path"]) == 203 and len(document["method"]) == 23 and document["unknown"] == names
    Record("req_2", "GET", "/v1/models/a%20b", "127.0.0.1", status=200).log()
    assert " GET /v1/models/a%20b 200 " in lines.text[1]
    Record("req_4", "POST", "/v1/responses", "127.0.0.1", status=400, error="unsupported_field", param="store").log()
    assert (
        lines.text[2].endswith("error=unsupported_field param=store") and json.loads(lines.json[2])["param"] == "store"
    )
    Record("req_5", "POST", "/v1/responses", "127.0.0.1", status=400, param="logit_bias.a error=b" + "c" * 100).log()
    assert 'param="logit_bias.a error=bccc' in lines.text[3] and lines.text[3].endswith('..."')
    Record("req_3", "GET", "", "127.0.0.1", status=404).log()  # of "GET ?a HTTP/1.1"
    assert " 404 " in lines.text[-1]


def test_what_is_refused_for_now_is_no_fault(lines: Lines) -> None:
    for status, level in ((200, "info"), (429, "info"), (500, "error"), (503, "warning")):
        Record("req_1", "GET", "/v1/models", "127.0.0.1", status=status).log()
        assert json.loads(lines.json[-1])["level"] == level


def test_where_something_failed_is_logged_and_nothing_of_what_was_sent(lines: Lines) -> None:
    sent = "secret of a prompt"
    try:
        raise ValueError(sent)
    except ValueError as error:
        log_failure(error, "req_1")
        LOGGER.error(f"Exception in an application\n{sent}", exc_info=error)  # as uvicorn and asyncio log
    for at, message in enumerate(("request failed: ValueError", "Exception in an application: ValueError")):
        document = json.loads(lines.json[at])
        assert document["message"] == message and "test_server_record.py" in document["traceback"]
        assert f" error   {message}" in lines.text[at] and "\n  File " in lines.text[at]
        assert "secret" not in lines.text[at] + lines.json[at]
