"""What Prometheus reads at /metrics."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hetero.load_state import Snapshot
from hetero.server.openapi import GETS, POSTS
from hetero.server.page_files import PAGE
from hetero.server.record import Record
from hetero.server.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
PATHS = {path: path for path in (*POSTS, *GETS)} | dict.fromkeys(PAGE, "/")  # no label is a path that a client made up
ONE_MODEL = "/v1/models/"


class Metrics:
    """Counts finished requests; the rest is asked of the scheduler when somebody reads."""

    def __init__(self) -> None:
        disable_created_metrics()  # in this text format they would be gauges of their own, one beside each series
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hetero_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._gone = Counter(
            "hetero_requests_left", "Requests whose client went away.", ["how"], registry=self._registry
        )
        self._seconds = Histogram(
            "hetero_request_seconds", "Time of a request.", ["path"], buckets=SECONDS, registry=self._registry
        )
        self._first = Histogram(
            "hetero_first_token_seconds", "Time to the first token.", buckets=SECONDS, registry=self._registry
        )
        self._finish = Counter("hetero_answers", "Answers by how they ended.", ["reason"], registry=self._registry)
        self._model = OfModel()
        self._registry.register(self._model)

    def observe(self, record: Record) -> None:
        path = PATHS.get(record.path, "other")
        if path == "other" and record.path.startswith(ONE_MODEL) and record.status == 200:
            path = ONE_MODEL + "{name}"
        self._requests.labels(path, str(record.status)).inc()
        self._seconds.labels(path).observe(record.seconds)
        if record.ended:
            self._gone.labels(record.ended).inc()
        if record.first_token_seconds is not None:
            self._first.observe(record.first_token_seconds)
        for reason in record.finish:
            self._finish.labels(reason).inc()

    def text(self, service: Service) -> bytes:
        self._model.service = service
        return generate_latest(self._registry)


class OfModel(Collector):
    service: Service | None = None

    def collect(self) -> Iterator[Metric]:
        if self.service is None:
            return
        state = GaugeMetricFamily("hetero_state", "1 for the state that the server is in.", labels=["state"])
        for name in ("loading", "ready", "draining", "failed"):
            state.add_metric([name], float(self.service.health == name))
        yield state
        if (snapshot := self.service.snapshot()) is not None:
            yield from gauges(snapshot)
            yield from counters(snapshot)


def gauges(snapshot: Snapshot) -> Iterator[Metric]:
    values = {
        "running": ("Sequences that have a place.", snapshot.running),
        "waiting": ("Requests that wait for one.", snapshot.waiting),
        "tokens_per_second": ("Generated, all sequences together, now.", snapshot.tokens_per_second),
        "prompt_tokens_per_second": ("Read, now.", snapshot.prompt_tokens_per_second),
        "ceiling_tokens_per_second": ("One sequence's, by the memory's bandwidth.", snapshot.ceiling_tokens_per_second),
        "max_token_gap_seconds": ("Between an answer's tokens, the bound in force.", snapshot.max_token_gap),
        "longest_token_gap_seconds": ("Between an answer's tokens, so far.", snapshot.longest_token_gap),
        "step_seconds": ("A token for each running sequence.", snapshot.step_seconds),
    }
    for name, (help, value) in values.items():
        if value is not None:
            yield GaugeMetricFamily(f"hetero_{name}", help, value=value)
    pages = GaugeMetricFamily("hetero_cache_pages", "Pages of 64 tokens, by what is in them.", labels=["state"])
    of_state = {"held": snapshot.pages_held, "cached": snapshot.pages_cached, "free": snapshot.pages_free}
    for state, count in of_state.items():
        pages.add_metric([state], count)
    yield pages
    yield GaugeMetricFamily("hetero_cache_pages_shared", "Held by several sequences.", value=snapshot.pages_shared)


def counters(snapshot: Snapshot) -> Iterator[Metric]:
    tokens = CounterMetricFamily("hetero_tokens", "Tokens; cached ones were not read anew.", labels=["kind"])
    kinds = {"prompt": snapshot.prompt_tokens, "cached": snapshot.cached_tokens, "generated": snapshot.generated_tokens}
    for kind, count in kinds.items():
        tokens.add_metric([kind], count)
    yield tokens
    ended = CounterMetricFamily("hetero_sequences", "Sequences by how they ended.", labels=["reason"])
    for reason, count in snapshot.ended.items():
        ended.add_metric([reason], count)
    yield ended
    yield CounterMetricFamily("hetero_refused", "Requests refused because the queue was full.", value=snapshot.refused)
    evicted = snapshot.pages_evicted
    yield CounterMetricFamily("hetero_cache_pages_evicted", "Pages dropped for newer tokens.", value=evicted)
