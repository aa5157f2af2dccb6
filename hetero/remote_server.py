"""A server that speaks OpenAI's interface, as its client sees it: documents, streams of events, and errors in words."""

import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

from hetero.errors import HeteroError, RequestError, ResourceError

CONNECT = 10.0  # seconds
SILENCE = 600.0  # seconds without a byte; hetero's server says every ten that it is still there, others read in silence
LINE = 1 << 24  # bytes; no event is longer
REFUSAL = 1 << 16  # bytes of an error that are read


class RemoteServer:
    """`url`: http://HOST:PORT, with or without /v1; http:// may be left out. `key`: None, if it wants none."""

    def __init__(self, url: str, key: str | None = None):
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise wrong_address(url) from error
        if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
            raise wrong_address(url)
        self._secure, self._host, self._port = parts.scheme == "https", host, port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        if key is not None:
            if not key.isascii() or not key.isprintable():
                raise RequestError("the API key holds characters that no key has", "printable ASCII")
            self._headers["authorization"] = f"Bearer {key}"

    def get(self, path: str) -> Any:
        """The document there."""
        with closing(self._connection()) as connection:
            response = self._answer(connection, "GET", path)
            try:
                return json.loads(response.read(LINE))
            except (ValueError, RecursionError) as error:
                raise self.foreign(f"answered GET {path} with something else than JSON") from error
            except (OSError, HTTPException) as error:
                raise self._lost(error) from error

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, up to [DONE] or the stream's end."""
        with closing(self._connection()) as connection:
            response = self._answer(connection, "POST", path, json.dumps(body).encode())
            if response.headers.get_content_type() != "text/event-stream":
                raise self.foreign(f"answered POST {path} with {response.headers.get_content_type()}, not with events")
            for data in self._data(response):
                if data == b"[DONE]":
                    return
                try:
                    document = json.loads(data)
                except (ValueError, RecursionError) as error:
                    raise self.foreign("sent an event that is not JSON") from error
                if not isinstance(document, dict):
                    raise self.foreign("sent an event that is no object")
                yield document

    def foreign(self, found: str) -> HeteroError:
        return RequestError(f"{self.url} {found}", "it is no server of OpenAI's interface", "hetero serve is one")

    def _data(self, response: HTTPResponse) -> Iterator[bytes]:
        """Of each event; comments, which keep the connection alive, and names of events are passed over."""
        held: list[bytes] = []
        while True:
            try:
                line = response.readline(LINE)
            except (OSError, HTTPException) as error:
                raise self._lost(error) from error
            text = line.rstrip(b"\r\n")
            if text.startswith(b"data:"):
                held.append(text[5:].removeprefix(b" "))
            elif not text and held:
                yield b"\n".join(held)
                held.clear()
            if not line:
                return

    def _connection(self) -> HTTPConnection:
        if self._secure:
            return HTTPSConnection(self._host, self._port, timeout=CONNECT, context=ssl.create_default_context())
        return HTTPConnection(self._host, self._port, timeout=CONNECT)

    def _answer(self, connection: HTTPConnection, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
        """With status 200."""
        try:
            connection.connect()
            connection.sock.settimeout(SILENCE)
            connection.request(method, self._path + path, body, self._headers)
            response = connection.getresponse()
            if response.status == 200:
                return response
            text = response.read(REFUSAL)
        except UnicodeError as error:  # names of hosts have rules
            raise wrong_address(self.url) from error
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        raise self._refused(response, text, f"{method} {path}")

    def _unreachable(self, error: Exception) -> HeteroError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return ResourceError(f"the certificate of {self.url} is not trusted: {error.verify_message}")
        if isinstance(error, RemoteDisconnected):
            return self._lost(error)
        if isinstance(error, ssl.SSLError):
            plain = self.url.replace("https:", "http:", 1)
            return RequestError(f"{self.url} does not speak TLS: {error.reason or error}", "", f"try {plain}")
        if isinstance(error, HTTPException):
            return self.foreign("answers with something else than HTTP")
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ResourceError(f"no server answers at {self.url}: {said}", "", "hetero serve starts one")

    def _lost(self, error: Exception) -> HeteroError:
        said = str(error) or type(error).__name__
        return ResourceError(f"the connection to {self.url} broke: {said}", "", "ask again")

    def _refused(self, response: HTTPResponse, text: bytes, what: str) -> HeteroError:
        try:
            error = json.loads(text)["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return self.foreign(f"answered {what} with {response.status} {response.reason}")
        if code == "context_length_exceeded":
            remedy = "/clear forgets the conversation, a server with a larger --context holds more"
            return RequestError(message, "", remedy)
        if response.status == 401:
            return RequestError(f"{self.url}: {message}", "", "give the key by --api-key-file FILE or HETERO_API_KEY")
        if response.status in (429, 503):
            seconds = response.headers.get("retry-after", "")
            when = f"in {seconds} s" if seconds.isdecimal() else "later"
            return ResourceError(f"{self.url}: {message}", "", f"ask again {when}")
        return (RequestError if response.status < 500 else HeteroError)(f"{self.url}: {message}")


def wrong_address(url: str) -> RequestError:
    return RequestError(f"{url} is no server's address", "http://HOST:PORT, or https", "as http://127.0.0.1:8000")
