"""`hetero serve`: listens at once, loads the model meanwhile, drains when it is told to stop."""

import asyncio
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import NoReturn

import uvicorn

from hetero.errors import ResourceError
from hetero.plan_report import counted, speed
from hetero.run_config import RunConfig
from hetero.server.app import create_app
from hetero.server.connection import Connection
from hetero.server.gate import Gate
from hetero.server.loaded import Loaded
from hetero.server.record import LOGGER, log_to_stderr
from hetero.server.service import Service, name_of
from hetero.server.settings import ServeSettings
from hetero.sizes import format_size
from hetero.template import ChatTemplate

STOPPED = 130  # exit status after a second signal, as after Ctrl-C elsewhere
BIND_REMEDIES = {
    errno.EADDRINUSE: "stop the other program, or choose another --port",
    errno.EADDRNOTAVAIL: "--host is an address of this machine, as 127.0.0.1, or 0.0.0.0 for all of them",
    errno.EACCES: "choose a --port from 1024 on; those below are the system's",
}
BACKLOG = 256  # connections that wait to be accepted
# Seconds. The scheduler's thread gives up the GIL some eight times a step, at kernels, and waits so long to have it
# back from a thread that reads a large request. At Python's own 5 ms the bundled model kept 4 % of its speed so.
SWITCH_INTERVAL = 0.0005


def serve(path: str, run: RunConfig, settings: ServeSettings, name: str | None = None) -> int:
    """Returns the exit status when a signal has ended it; raises what loading does, or OSError for the address."""
    log_to_stderr(settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL)
    service = Service(name or name_of(path), settings, created=int(os.stat(path).st_mtime))
    server = Server(service, create_app(service, settings), settings)
    with closing(listening(settings)) as listener:
        return server.run_until_stopped(path, run, listener)


def listening(settings: ServeSettings) -> socket.socket:
    """The socket, before anything is loaded: an address that is taken is known at once. Who connects from now on waits
    for an answer, and is not refused."""
    here = f"cannot listen on {settings.host or 'every address'} port {settings.port}"
    try:
        family, _, _, _, where = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ResourceError(here, "no address has this name", "choose another --host, as 127.0.0.1") from error
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ResourceError(here, error.strerror or str(error), BIND_REMEDIES.get(error.errno or 0, "")) from error
    return found


def address(listener: socket.socket, settings: ServeSettings) -> str:
    return f"http://{settings.shown_host}:{listener.getsockname()[1]}"


class Stopped(Exception):
    """Loading was ended by a signal."""


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT drains: nothing new is taken, what runs is finished. The second ends everything."""

    def __init__(self, service: Service, app: Gate, settings: ServeSettings):
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, limits),  # type: ignore[arg-type]  # it is called like a class
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=round(limits.idle_seconds),
                h11_max_incomplete_event_size=limits.header_bytes,
                timeout_graceful_shutdown=math.ceil(limits.write_seconds),  # of who has not taken all of an answer
                backlog=BACKLOG,
            )
        )
        self.config.load()
        self._service, self._gate, self._settings = service, app, settings
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None  # held: a task that nobody refers to may be collected
        self._url = ""
        self._loader: threading.Thread | None = None  # of the model; None: it is there
        self._failure: BaseException | None = None

    def run_until_stopped(self, path: str, run: RunConfig, listener: socket.socket) -> int:
        self._url = address(listener, self._settings)
        loader = threading.Thread(target=self._load, args=(path, run), name="load", daemon=True)
        self._loader = loader
        self.run(sockets=[listener])
        if loader.is_alive() and self._failure is None:
            end_at_once(0)
        loader.join()
        self._service.close()
        if self._failure is not None:
            raise self._failure
        return 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._loader is not None:
            LOGGER.info(f"listening on {self._url}")
            self._loader.start()

    def _load(self, path: str, run: RunConfig) -> None:
        try:
            started = time.perf_counter()
            loaded = open_model(path, run, self._settings, self._progress)
            gc.freeze()  # a full collection looks at all that was loaded, for 0.2 s and more in which nobody computes
            self._service.ready(loaded)
            for line in promises(loaded, self._settings):
                LOGGER.info(line)
            LOGGER.info(f"{self._service.name} is ready after {time.perf_counter() - started:.1f} s at {self._url}")
        except Stopped:
            pass
        except BaseException as error:
            self._failure = error
            self.should_exit = True

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._signals:
            raise Stopped
        if stage != self._service.stage["stage"]:
            LOGGER.info(stage)
        self._service.stage = {"stage": stage, "done": done, "total": total}

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # as tests do; signals come to the main thread
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        self._signals += 1
        name = signal.Signals(number).name
        if self._signals > 1:
            cut = counted(self._gate.answering, "request")
            LOGGER.warning(f"{name} again: stopping at once, in the middle of {cut}")
            end_at_once(STOPPED)  # uvicorn would cancel them, log each as a fault, and send its own words to clients
        LOGGER.info(f"{name}: draining; nothing new is taken, running answers are finished; once more stops at once")
        loading = self._service.state == "loading"
        self._service.drain()
        if loading:
            self.should_exit = True
        else:
            self._draining = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        """The listening socket stays open as long as answers run, so that /health can say what happens."""
        while self._gate.answering and not self.should_exit:
            await asyncio.sleep(0.05)
        self.should_exit = True


def open_model(path: str, run: RunConfig, settings: ServeSettings, progress: Callable[[str, int, int], None]) -> Loaded:
    """Raises what loading does; then nothing of it stays open."""
    from hetero.loading import load  # here: it comes with the kernels, which the first start compiles, for a minute

    engine, tokenizer = load(path, run, progress, LOGGER.info)
    from hetero.scheduler import Scheduler

    with ExitStack() as failed:
        failed.callback(engine.close)
        template = ChatTemplate.from_gguf(engine.file, tokenizer)
        scheduler = Scheduler(engine, max_token_gap=settings.max_token_gap, queue=settings.queue)
        failed.pop_all()
        failed.callback(scheduler.close)  # which closes the engine
        loaded = Loaded(
            scheduler=scheduler,
            tokenizer=tokenizer,
            template=template,
            context=engine.context,
            sequences=run.sequences,
            title=engine.config.name,
            planned=engine.planned,
        )
        loaded.make_vocabulary()
        failed.pop_all()
    return loaded


def promises(loaded: Loaded, settings: ServeSettings) -> Iterator[str]:
    """What clients can count on, and what it rests on."""
    snapshot, sequences = loaded.scheduler.snapshot(), counted(loaded.sequences, "answer")
    waiting = counted(settings.queue, "more request")
    yield f"{loaded.title}: {sequences} at once, {loaded.context:,} tokens of context for each; {waiting} may wait"
    if loaded.planned is not None:
        plan, planned = loaded.planned.plan, loaded.planned
        parts = [f"{use.name} {format_size(use.weight_bytes)}" for use in plan.memories if use.weight_bytes]
        cache = format_size(sum(use.kv_bytes for use in plan.memories))
        yield f"plan: {plan.mode}, {', '.join(parts)} of weights, {cache} of cache, {counted(plan.threads, 'thread')}"
        ceiling = speed(plan.decode_ceiling_tokens_per_second)
        measured = "" if planned.machine.measured else ", not measured here (hetero plan measures)"
        yield f"ceiling: {ceiling} tok/s for one answer, what the memory's bandwidth allows{measured}"
    yield f"between two tokens of an answer at most {snapshot.max_token_gap * 1e3:,.0f} ms while prompts are read"
    yield "an API key is needed" if settings.keys else "no API key: whoever reaches the address may use it"


def end_at_once(status: int) -> NoReturn:
    """Without waiting for threads that compute or read."""
    logging.shutdown()
    os._exit(status)
