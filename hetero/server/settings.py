"""How the server listens and what it bears (`ServeSettings`, from the caller): checked before a model is loaded."""

import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hetero.errors import RequestError
from hetero.sampler import Sampling

KEY_VARIABLE = "HETERO_API_KEY"
KEY = re.compile(r"[\x21-\x7e]{8,512}")
# Of pages; of programs that are made of pages, as app://obsidian.md; of all whose scheme is such a program's own, as
# vscode-webview://*, where each window has another; and of files.
ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-_\[\]:]+|(?!https?:)[a-z][a-z0-9+.\-]*://(\*|[A-Za-z0-9.\-_\[\]:]*)|null")
MOST_CHOICES = 16  # of a request
LONGEST_GAP = 60  # seconds; who says 500 means milliseconds
HOST = re.compile(r"[A-Za-z0-9.\-_:]+")


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server; beyond it a request is refused, never cut."""

    body_bytes: int = 8 << 20
    bodies_bytes: int = 64 << 20  # of all bodies that are being read or parsed at one time
    depth: int = 64  # of JSON
    json_objects: int = 16_384  # one without members takes as long to look at as three with one
    json_members: int = 50_000  # of all its objects
    json_values: int = 300_000  # of all its lists and objects: prompts may be token ids
    messages: int = 4096
    tools: int = 512  # OpenAI takes 128; agents with a few MCP servers send more, and schemas have a limit of their own
    stop_strings: int = 16
    stop_characters: int = 1024  # of one
    logit_biases: int = 1024
    choices: int = MOST_CHOICES  # prompts x n
    header_bytes: int = 32 << 10
    headers: int = 100
    connections: int = 512
    header_seconds: float = 10.0  # to send a request's head
    body_seconds: float = 60.0  # to send its body
    write_seconds: float = 60.0  # to take what was sent
    idle_seconds: float = 30.0  # between requests
    keep_alive_seconds: float = 10.0  # between comments in a stream in which nothing happens


@dataclass(frozen=True)
class ServeSettings:
    """`keys`: any of them opens the server; none: it is open to whoever reaches it."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    insecure: bool = False  # listen beyond this machine without a key
    max_token_gap: float | None = None  # seconds; None: the scheduler's default for this machine
    queue: int = 64
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False
    sampling: Sampling = field(default_factory=Sampling)  # where a request says nothing
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError(f"--port {self.port}", "ports are 0 to 65535, 0 takes a free one", "the default is 8000")
        if self.queue < 0:
            raise RequestError(f"--queue {self.queue}", "at least 0 requests wait", "the default is 64")
        if self.max_token_gap is not None and not 0 < self.max_token_gap <= LONGEST_GAP:
            found = f"--max-token-gap {self.max_token_gap:g}"
            limit = f"it is in seconds, above 0 and at most {LONGEST_GAP}"
            milliseconds = f"for {self.max_token_gap:g} ms say {self.max_token_gap / 1000:g}"
            raise RequestError(found, limit, milliseconds if self.max_token_gap > 0 else "without it the default fits")
        for origin in self.cors_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                remedy = "as http://localhost:3000 or app://obsidian.md, without a path"
                raise RequestError(f"--cors-origin {origin!r}", "scheme://host[:port], null, or *", remedy)
        if "" in self.aliases:
            raise RequestError("--alias ''", "a name has at least one character", "say --alias NAME")
        for host in self.allowed_hosts:
            if not HOST.fullmatch(host):
                raise RequestError(f"--allowed-host {host!r}", "a name or an address, without port", "as myhost.lan")
        for key in self.keys:
            if not KEY.fullmatch(key):
                raise RequestError(
                    f"an API key, of --api-key-file or the environment's {KEY_VARIABLE}, has {len(key)} characters",
                    "8 to 512 characters, printable ASCII without spaces",
                    "make one with: openssl rand -hex 32",
                )
        if not self.keys and not self.insecure and not is_loopback(self.host):
            raise RequestError(
                f"--host {self.host} can be reached by other machines",
                "this needs an API key",
                f"give --api-key-file FILE or set {KEY_VARIABLE}, or say --insecure",
            )

    @property
    def shown_host(self) -> str:
        """As a part of a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may mean anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(
    file: str | None, environment: Mapping[str, str] = os.environ, notice: Callable[[str], None] = lambda text: None
) -> tuple[str, ...]:
    """Keys of the file, one a line, and the environment's."""
    keys = [environment[KEY_VARIABLE]] if environment.get(KEY_VARIABLE) else []
    if file is not None:
        path = Path(file)
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and path.is_file():
            notice(f"{file} can be read by other users of this machine: chmod 600 {file}")
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        found = [line for line in lines if line]
        if not found:
            raise RequestError(f"{file} holds no key", "one a line", "make one with: openssl rand -hex 32")
        keys += found
    return tuple(keys)
