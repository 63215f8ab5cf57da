"""Metrics of several processes in one text."""

import re

from engine import EngineStats
from server.metric_sums import MetricSums
from server.metrics import Metrics
from tests.fakes import FakeEngine


def samples(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_of_one_process_it_is_the_same_text() -> None:
    metrics = Metrics(FakeEngine(), model_name="m")
    metrics.count_usage(3, 5)
    metrics.ttft.observe(0.2)
    sums = MetricSums()
    sums.add(metrics.families())
    assert sums.render() == metrics.render()


def test_counters_and_histograms_add_up_and_gauges_are_the_engines() -> None:
    engine = FakeEngine()
    engine.stats = EngineStats(num_running=2, num_pages=20, num_steps=7)
    parent = Metrics(engine, model_name="m")
    parent.on_stats(EngineStats(new_step_tokens=(64, 2), new_step_s=(0.1, 0.01)))
    workers = [Metrics(None, model_name="m") for _ in range(3)]
    for number, worker in enumerate(workers, 1):
        worker.count_usage(10 * number, number)
        worker.itl.observe(0.004)
        worker.count_ok()
    sums = MetricSums()
    sums.add(parent.families())
    for worker in workers:
        sums.add(worker.families())
    found = samples(sums.render())
    assert found['vllm:num_requests_running{model_name="m"}'] == 2
    assert found['deltaserve:kv_pages{model_name="m"}'] == 20
    assert found['deltaserve:steps_total{model_name="m"}'] == 7
    assert found['vllm:iteration_tokens_total_count{model_name="m"}'] == 2
    assert found['vllm:prompt_tokens_total{model_name="m"}'] == 60
    assert found['vllm:generation_tokens_total{model_name="m"}'] == 6
    assert found['vllm:inter_token_latency_seconds_bucket{le="0.005",model_name="m"}'] == 3
    assert found['deltaserve:requests_total{model_name="m",outcome="ok"}'] == 3
    created = [name for name in found if re.search("prompt_tokens_created", name)]
    assert found[created[0]] == samples(parent.render())[created[0]]


def test_sums_can_be_added_again() -> None:
    worker = Metrics(None, model_name="m")
    worker.count_usage(1, 2)
    gone = MetricSums()
    for _ in range(2):
        gone.add(worker.families())
    total = MetricSums()
    total.add(gone.families())
    total.add(worker.families())
    assert samples(total.render())['vllm:generation_tokens_total{model_name="m"}'] == 6
