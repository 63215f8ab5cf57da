"""Prometheus series, on a registry of our own. Names of section 1 are vLLM's, so dashboards and
autoscalers find them; what is ours alone is `deltaserve:*`. Label values come from fixed sets.

Gauges and engine counters are read from `engine.stats` at the moment of a scrape; counters of
requests and tokens move when a request ends, by its exact usage; `ChoiceClock` takes the times of
one choice. Everything here belongs to the event loop's thread.

Where several processes answer requests, each has its own `Metrics`, of which one also reads the
engine's; `metric_sums` makes one text of all.
"""

from collections.abc import Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine import EngineClient, EngineStats
from server.errors import ErrorAnswer
from server.metric_sums import Family, families_of

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Ending = Literal["stop", "length", "abort", "error"]

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
_SLOW_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96)
_TOKENS = tuple(float(2**i) for i in range(19))
_REASONS = frozenset(
    {
        "context_length_exceeded",
        "draining",
        "engine_dead",
        "queue_full",
        "queue_timeout",
        "request_timeout",
        "starting",
        "stream_too_slow",
        "too_many_connections",
    }
)


class Metrics:
    def __init__(self, engine: EngineClient | None, *, model_name: str) -> None:
        """`engine` None: another process tells the engine's gauges and counters."""
        self._registry = CollectorRegistry()
        self._model_name = model_name
        if engine is not None:
            self._registry.register(_EngineCollector(engine, model_name))

        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Generated tokens")
        self._cache_queries = self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache"
        )
        self._cache_hits = self._counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache"
        )
        self._success = Counter(
            "vllm:request_success",
            "Choices ended, by reason",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._requests = Counter(
            "deltaserve:requests",
            "HTTP requests for model work, and refused ones, by outcome",
            ("model_name", "outcome"),
            registry=self._registry,
        )
        self._client_errors = Counter(
            "deltaserve:client_errors",
            "Refused requests, by status",
            ("model_name", "status"),
            registry=self._registry,
        )
        self._rejections = Counter(
            "deltaserve:rejections",
            "Requests not taken or not finished, by reason",
            ("model_name", "reason"),
            registry=self._registry,
        )
        for ending in ("stop", "length", "abort", "error"):
            self._success.labels(model_name, ending)
        for outcome in ("ok", "client_error", "aborted", "rejected", "failed"):
            self._requests.labels(model_name, outcome)
        for reason in sorted(_REASONS):
            self._rejections.labels(model_name, reason)

        self.ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token", _TTFT_S
        )
        self.itl = self._histogram(
            "vllm:inter_token_latency_seconds", "Time between tokens of a choice", _FAST_S
        )
        self.e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to the end of a choice", _SLOW_S
        )
        self.queue = self._histogram(
            "vllm:request_queue_time_seconds", "Submission to the first step", _SLOW_S
        )
        self.prefill = self._histogram(
            "vllm:request_prefill_time_seconds", "First step to first token", _SLOW_S
        )
        self.decode = self._histogram(
            "vllm:request_decode_time_seconds", "First token to last token", _SLOW_S
        )
        self._request_prompt = self._histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS
        )
        self._request_generation = self._histogram(
            "vllm:request_generation_tokens", "Generated tokens of a request", _TOKENS
        )
        self._step_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens computed in one engine step", _TOKENS
        )
        self._step_time = self._histogram(
            "deltaserve:step_seconds", "Time of one engine step", _FAST_S
        )

    def on_stats(self, stats: EngineStats) -> None:
        """Take the steps since the last stats; call it once for each `EngineStats` that comes."""
        for num_tokens in stats.new_step_tokens:
            self._step_tokens.observe(num_tokens)
        for seconds in stats.new_step_s:
            self._step_time.observe(seconds)

    def count_usage(self, num_prompt: int, num_generated: int) -> None:
        """Book one ended request by the usage it was told, or would have been."""
        self._prompt_tokens.inc(num_prompt)
        self._generation_tokens.inc(num_generated)
        self._request_prompt.observe(num_prompt)
        self._request_generation.observe(num_generated)

    def count_cache(self, num_queried: int, num_hit: int) -> None:
        self._cache_queries.inc(num_queried)
        self._cache_hits.inc(num_hit)

    def count_ending(self, ending: Ending) -> None:
        self._success.labels(self._model_name, ending).inc()

    def count_ok(self) -> None:
        self._requests.labels(self._model_name, "ok").inc()

    def count_abort(self) -> None:
        self._requests.labels(self._model_name, "aborted").inc()

    def count_error(self, answer: ErrorAnswer) -> None:
        """Book an error that was answered."""
        if answer.status in (429, 503):
            outcome = "rejected"
        elif answer.status < 500:
            outcome = "client_error"
            self._client_errors.labels(self._model_name, str(answer.status)).inc()
        else:
            outcome = "failed"
        self._requests.labels(self._model_name, outcome).inc()
        if answer.code in _REASONS:
            self._rejections.labels(self._model_name, str(answer.code)).inc()

    def render(self) -> bytes:
        """The text exposition of every series."""
        return generate_latest(self._registry)

    def families(self) -> tuple[Family, ...]:
        """The same, as `metric_sums` takes it."""
        return families_of(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(name, text, ("model_name",), registry=self._registry)
        return counter.labels(self._model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, text, ("model_name",), registry=self._registry, buckets=buckets)
        return histogram.labels(self._model_name)


class ChoiceClock:
    """The times of one choice, observed as they become known. Times are `time.monotonic()`."""

    __slots__ = ("_arrived", "_first", "_last", "_metrics", "_submitted")

    def __init__(self, metrics: Metrics, *, arrived: float, submitted: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._submitted = submitted
        self._first: float | None = None
        self._last = 0.0

    @property
    def has_started(self) -> bool:
        return self._first is not None

    def started(self, now: float, queue_s: float) -> None:
        """The first delta came."""
        self._first = self._last = now
        self._metrics.queue.observe(queue_s)
        self._metrics.prefill.observe(max(0.0, now - self._submitted - queue_s))
        self._metrics.ttft.observe(now - self._arrived)

    def stepped(self, now: float, num_tokens: int) -> None:
        """`num_tokens` more came together."""
        if num_tokens:
            gap = (now - self._last) / num_tokens
            for _ in range(num_tokens):
                self._metrics.itl.observe(gap)
            self._last = now

    def ended(self, now: float, ending: Ending) -> None:
        if self._first is not None and ending in ("stop", "length"):
            self._metrics.decode.observe(self._last - self._first)
            self._metrics.e2e.observe(now - self._arrived)
        self._metrics.count_ending(ending)


class _EngineCollector(Collector):
    """Reads the engine's gauges and counters when somebody asks."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        usage = stats.num_pages_used / stats.num_pages if stats.num_pages else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests running", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests waiting", stats.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1", usage)
        yield self._gauge("deltaserve:kv_pages_used", "KV pages in use", stats.num_pages_used)
        yield self._gauge("deltaserve:kv_pages", "KV pages there are", stats.num_pages)
        yield self._gauge(
            "deltaserve:state_slots_used", "Recurrent-state slots in use", stats.num_slots_used
        )
        yield self._gauge(
            "deltaserve:state_slots", "Recurrent-state slots there are", stats.num_slots
        )
        yield self._gauge(
            "deltaserve:kv_pages_cached", "KV pages in the prefix cache", stats.num_pages_cached
        )
        yield self._gauge(
            "deltaserve:saved_states", "States in the prefix cache", stats.num_states_saved
        )
        yield self._gauge(
            "deltaserve:saved_state_slots", "Room for saved states", stats.num_saved_slots
        )
        yield self._counter(
            "deltaserve:saved_state_evictions",
            "States that made room for others",
            stats.num_state_evictions,
        )
        lookups = CounterMetricFamily(
            "deltaserve:prefix_cache_lookups",
            "Prompts looked up in the prefix cache, by what was found of them",
            labels=("model_name", "found"),
        )
        for found, count in stats.prefix_lookups.items():
            lookups.add_metric((self._model_name, found), count)
        yield lookups
        yield self._counter("vllm:num_preemptions", "Preemptions", stats.num_preemptions)
        yield self._counter("deltaserve:steps", "Engine steps", stats.num_steps)
        yield self._counter("deltaserve:engine_restarts", "Engine restarts", stats.num_restarts)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family
