"""The load generator against a small real server on loopback."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from server.arguments import BenchArguments, parse_arguments
from server.bench.client import Outcome
from server.bench.report import Distribution, Report, make_report
from server.bench.run import measure, run_bench
from server.bench.workload import make_jobs
from tests.server.cli.fake_openai import FakeOpenAI, running


def arguments_for(url: str, *flags: str) -> BenchArguments:
    arguments = parse_arguments(["bench", "--base-url", url, *flags], {})
    assert isinstance(arguments, BenchArguments)
    return arguments


def measured(fake: FakeOpenAI, *flags: str) -> Report:
    with running(fake) as url:
        return asyncio.run(measure(arguments_for(url, *flags), progress=False))


def test_counts_come_from_usage_and_the_load_is_as_asked():
    fake = FakeOpenAI()
    report = measured(
        fake, "--num-requests", "12", "--concurrency", "3", "--prompt-tokens", "20:40",
        "--output-tokens", "4:6", "--shared-prefix-tokens", "16", "--ignore-eos",
        "--api-key", "secret",
    )  # fmt: skip
    bodies = fake.bodies[1:]  # the first one is the warm-up
    assert report.model == "fake-model"
    assert report.num_done == len(bodies) == 12
    assert report.failures == {}
    assert report.prompt_tokens == sum(len(body["prompt"]) for body in bodies)
    assert report.output_tokens == sum(body["max_tokens"] for body in bodies)
    assert {len(body["prompt"]) >= 20 for body in bodies} == {True}
    assert len({len(body["prompt"]) for body in bodies}) > 1
    assert {body["max_tokens"] for body in bodies} == {4, 5, 6}
    assert len({tuple(body["prompt"][:16]) for body in bodies}) == 1
    assert len({tuple(body["prompt"]) for body in bodies}) == 12
    assert all(body["ignore_eos"] and body["stream_options"] for body in bodies)
    assert fake.most_open == 3
    assert fake.keys == ["Bearer secret"]
    assert 2 <= report.ttft_ms.p50 <= report.e2e_ms.p50 <= report.e2e_ms.p99
    assert report.itl_ms.p50 >= 2
    assert sum(len(o.itl_s) + 1 for o in report.outcomes) == report.output_tokens


def test_chat_prompts_are_sized_by_the_server_s_own_count():
    fake = FakeOpenAI()
    report = measured(
        fake, "--endpoint", "chat", "--num-requests", "2", "--prompt-tokens", "60",
        "--output-tokens", "2", "--shared-prefix-tokens", "20",
    )  # fmt: skip
    texts = [body["messages"][0]["content"].split() for body in fake.bodies[1:]]
    assert [len(words) for words in texts] == [30, 30]
    assert texts[0][:10] == texts[1][:10]
    assert texts[0] != texts[1]
    assert report.prompt_tokens == 120
    assert "ignore_eos" not in fake.bodies[1]


def test_failures_are_counted_by_kind_and_kept_out_of_the_figures():
    kinds = ["well", "full", "full", "error", "cut", "garbage", "unfinished", "uncounted", "stuck"]
    report = measured(
        FakeOpenAI(behaviours=kinds), "--num-requests", "10", "--concurrency", "1",
        "--output-tokens", "2", "--timeout", "1",
    )  # fmt: skip
    assert report.num_done == 2
    assert report.failures == {
        "HTTP 429 queue_full": 2,
        "stream error: engine_dead": 1,
        "stream ended early": 1,
        "broken chunk": 1,
        "no finish reason": 1,
        "no usage in the stream": 1,
        "timeout": 1,
    }
    assert report.output_tokens == 4
    assert "     2  HTTP 429 queue_full" in report.table()


def test_poisson_arrivals_do_not_wait_for_answers():
    fake = FakeOpenAI()
    report = measured(
        fake, "--num-requests", "20", "--request-rate", "400", "--output-tokens", "30",
    )  # fmt: skip
    assert report.num_done == 20
    assert fake.most_open > 8
    starts = [outcome.start_s for outcome in report.outcomes]
    assert starts == sorted(starts)


def test_jobs_are_the_same_for_the_same_seed():
    def jobs(seed: str):
        return make_jobs(arguments_for("http://x", "--seed", seed, "--request-rate", "9"), 1.0)

    assert jobs("1") == jobs("1")
    assert jobs("1") != jobs("2")


def test_prints_a_table_and_saves_everything_but_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "result.json"
    flags = ["--num-requests", "3", "--output-tokens", "3", "--api-key", "secret"]
    with running(FakeOpenAI(behaviours=["well", "full"])) as url:
        status = run_bench(arguments_for(url, *flags, "--output", str(output)))
    assert status == 0
    printed = capsys.readouterr().out
    assert "requests             2 done, 1 failed" in printed
    for row in ("time to first token", "between chunks", "per output token", "end to end"):
        assert row in printed
    saved = json.loads(output.read_text())
    assert saved["result"]["num_done"] == 2
    assert saved["result"]["ttft_ms"]["p99"] > 0
    assert [request["failure"] for request in saved["requests"]].count(None) == 2
    assert "secret" not in output.read_text()


def test_a_server_that_cannot_be_measured_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert run_bench(arguments_for("http://127.0.0.1:9")) == 1
    assert capsys.readouterr().err.startswith("deltaserve bench: http://127.0.0.1:9 cannot be")
    with running(FakeOpenAI(behaviours=["full"])) as url:
        assert run_bench(arguments_for(url)) == 1
    message = "deltaserve bench: the first request failed: HTTP 429 queue_full\n"
    assert capsys.readouterr().err == message


def test_percentiles_are_nearest_rank():
    hundred = Distribution.of_seconds([x / 1000 for x in range(100, 0, -1)])
    assert (hundred.p50, hundred.p90, hundred.p99) == (50.0, 90.0, 99.0)
    assert hundred.mean == pytest.approx(50.5)
    one = Distribution.of_seconds([0.25])
    assert (one.mean, one.p50, one.p99) == (250.0, 250.0, 250.0)
    assert math.isnan(Distribution.of_seconds([]).p50)


def test_nothing_measured_is_dashes_and_nulls():
    report = make_report("m", [Outcome(start_s=0.0, failure="timeout")], duration_s=1.0)
    assert "time to first token          -" in report.table()
    assert report.as_json(arguments_for("http://x"))["result"]["ttft_ms"]["p50"] is None


def test_time_per_token_spreads_the_time_after_the_first():
    outcome = Outcome(start_s=0, output_tokens=5, ttft_s=1.0, e2e_s=3.0)
    assert outcome.tpot_s == 0.5
    assert Outcome(start_s=0, output_tokens=1, ttft_s=1.0, e2e_s=3.0).tpot_s is None
