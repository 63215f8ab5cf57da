"""The Prometheus series: names, labels, and counters that move by exact usage."""

import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import EngineStats, QueueFull
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import CHAT, COMPLETIONS, Call, chat, say

pytestmark = pytest.mark.anyio

SERIES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count",
    "vllm:request_prompt_tokens_count",
    "vllm:request_generation_tokens_count",
    "vllm:iteration_tokens_total_count",
    "deltaserve:kv_pages_used",
    "deltaserve:kv_pages",
    "deltaserve:state_slots_used",
    "deltaserve:state_slots",
    "deltaserve:kv_pages_cached",
    "deltaserve:saved_states",
    "deltaserve:saved_state_slots",
    "deltaserve:saved_state_evictions_total",
    "deltaserve:rejections_total",
    "deltaserve:engine_restarts_total",
    "deltaserve:step_seconds_count",
    "deltaserve:requests_total",
}


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    """Samples by name, with the labels besides model_name in braces."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny", sample
            shown = ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if k != "le")
            samples[f"{sample.name}{{{shown}}}" if shown else sample.name] = sample.value
    return samples


async def test_every_series_is_there_from_the_start(client: httpx.AsyncClient) -> None:
    names = {name.partition("{")[0] for name in await scrape(client)}
    assert names >= SERIES


async def test_counters_move_by_the_exact_usage(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    before = await scrape(client)
    num_prompt = num_out = 0
    for body in (chat(), chat(n=2), chat(stop="sun")):
        for _ in range(int(body.get("n", 1))):
            server.engine.will(*say(tokenizer, "It is sunny."), num_cached_tokens=4, queue_s=0.5)
        usage = (await client.post(CHAT, json=body)).json()["usage"]
        num_prompt += usage["prompt_tokens"]
        num_out += usage["completion_tokens"]
    after = await scrape(client)

    def moved(name: str) -> float:
        return after[name] - before[name]

    assert moved("vllm:prompt_tokens_total") == num_prompt
    assert moved("vllm:generation_tokens_total") == num_out
    assert moved("vllm:prefix_cache_hits_total") == 16
    assert moved("vllm:request_success_total{finished_reason=stop}") == 4
    assert moved("deltaserve:requests_total{outcome=ok}") == 3
    assert moved("vllm:time_to_first_token_seconds_count") == 4
    assert moved("vllm:e2e_request_latency_seconds_count") == 4
    assert moved("vllm:request_queue_time_seconds_sum") == 2.0
    assert moved("vllm:request_prompt_tokens_count") == 3
    assert moved("vllm:request_generation_tokens_sum") == num_out
    assert moved("vllm:inter_token_latency_seconds_count") == num_out - 4


async def test_outcomes(server: FakeServer, client: httpx.AsyncClient) -> None:
    before = await scrape(client)
    await client.post(COMPLETIONS, json={"prompt": ""})
    server.engine.will(QueueFull("x"))
    await client.post(CHAT, json=chat())
    server.engine.will(KeyError("x"))
    await client.post(CHAT, json=chat())
    server.engine.will(finish=None)
    call = Call(server.app, CHAT, chat())
    await server.engine.became_active.wait()
    while not server.engine.num_active:
        await asyncio.sleep(0)
    call.disconnect()
    await call.done()
    after = await scrape(client)
    moved = {name: value - before[name] for name, value in after.items() if name in before}
    for outcome in ("client_error", "rejected", "failed", "aborted"):
        assert moved[f"deltaserve:requests_total{{outcome={outcome}}}"] == 1, outcome
    assert moved["deltaserve:requests_total{outcome=ok}"] == 0
    assert moved["deltaserve:rejections_total{reason=queue_full}"] == 1
    assert after["deltaserve:client_errors_total{status=400}"] == 1
    assert moved["vllm:request_success_total{finished_reason=abort}"] == 1
    assert moved["vllm:request_success_total{finished_reason=error}"] == 1


async def test_probes_do_not_count_as_requests(
    server: FakeServer, client: httpx.AsyncClient
) -> None:
    server.engine.state = "starting"
    await client.get("/health")
    assert (await scrape(client))["deltaserve:requests_total{outcome=rejected}"] == 0


async def test_engine_stats_are_read_at_the_scrape(
    server: FakeServer, client: httpx.AsyncClient
) -> None:
    stats = EngineStats(
        num_running=2,
        num_waiting=3,
        num_pages_used=5,
        num_pages=20,
        num_slots_used=2,
        num_slots=8,
        num_pages_cached=7,
        num_states_saved=3,
        num_saved_slots=9,
        num_state_evictions=6,
        prefix_lookups={"whole": 2, "new": 11},
        num_preemptions=4,
        num_restarts=1,
        new_step_tokens=(64, 2),
        new_step_s=(0.1, 0.01),
    )
    server.engine.stats = stats
    server.metrics.on_stats(stats)
    found = await scrape(client)
    assert found["vllm:num_requests_running"] == 2
    assert found["vllm:num_requests_waiting"] == 3
    assert found["vllm:kv_cache_usage_perc"] == 0.25
    assert found["deltaserve:kv_pages_used"] == 5
    assert found["deltaserve:state_slots"] == 8
    assert found["deltaserve:kv_pages_cached"] == 7
    assert found["deltaserve:saved_states"] == 3
    assert found["deltaserve:saved_state_slots"] == 9
    assert found["deltaserve:saved_state_evictions_total"] == 6
    assert found["deltaserve:prefix_cache_lookups_total{found=whole}"] == 2
    assert found["deltaserve:prefix_cache_lookups_total{found=new}"] == 11
    assert found["vllm:num_preemptions_total"] == 4
    assert found["deltaserve:engine_restarts_total"] == 1
    assert found["vllm:iteration_tokens_total_count"] == 2
    assert found["vllm:iteration_tokens_total_sum"] == 66
    assert found["deltaserve:step_seconds_count"] == 2
    server.engine.stats = EngineStats()
    assert (await scrape(client))["vllm:num_requests_running"] == 0


async def test_labels_never_come_from_the_request(
    server: FakeServer, client: httpx.AsyncClient
) -> None:
    await client.get("/v1/models/needle")
    await client.get("/needle")
    await client.post(CHAT, json=chat(model="needle", user="needle"))
    assert "needle" not in (await client.get("/metrics")).text
