"""Drives one measurement: find the model, warm up with one request, send the load, report.

With `concurrency` c, at most c requests are open; with a `request_rate`, requests start when their
Poisson arrival is due, and the time they then wait for room counts as theirs.
"""

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

import httpx
from tqdm import tqdm

from server.arguments import BenchArguments
from server.bench.client import BenchFailure, LoadClient, Outcome, find_model
from server.bench.report import Report, make_report
from server.bench.workload import TOKEN_IDS, Job, make_jobs, probe_text

PROBE_WORDS = 100


def run_bench(arguments: BenchArguments) -> int:
    """Measure, print a table, write the JSON. Returns the exit status."""
    try:
        report = asyncio.run(measure(arguments, progress=sys.stderr.isatty()))
    except BenchFailure as error:
        print(f"deltaserve bench: {error}", file=sys.stderr)
        return 1
    print(report.table())
    if arguments.output:
        content = json.dumps(report.as_json(arguments), indent=2) + "\n"
        Path(arguments.output).write_text(content, "utf-8")
    return 0 if report.num_done else 1


async def measure(arguments: BenchArguments, *, progress: bool) -> Report:
    """Run the whole load. Raises `BenchFailure` if not even one request works."""
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    async with httpx.AsyncClient(
        base_url=arguments.base_url,
        headers=headers,
        timeout=arguments.timeout_s,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,  # a proxy would be measured too
    ) as http:
        model = arguments.model or await find_model(http)
        client = LoadClient(http, arguments, model)
        jobs = make_jobs(arguments, await _warm_up(client, arguments))
        started_at = time.perf_counter()
        outcomes = await _send_all(client, jobs, arguments.concurrency, progress)
        return make_report(model, outcomes, duration_s=time.perf_counter() - started_at)


async def _warm_up(client: LoadClient, arguments: BenchArguments) -> float:
    """One request nobody counts: it shows that the server works. Returns tokens per word."""
    chat = arguments.endpoint == "chat"
    probe = Job(0.0, probe_text(PROBE_WORDS) if chat else list(TOKEN_IDS[:8]), output_tokens=2)
    outcome = await client.send(probe, start_s=0.0, due_at=time.perf_counter())
    if outcome.failure:
        raise BenchFailure(f"the first request failed: {outcome.failure}")
    return max(outcome.prompt_tokens / PROBE_WORDS, 0.1) if chat else 1.0


async def _send_all(
    client: LoadClient, jobs: list[Job], concurrency: int | None, progress: bool
) -> list[Outcome]:
    started_at = time.perf_counter()
    room = asyncio.Semaphore(concurrency) if concurrency else contextlib.nullcontext()
    bar = tqdm(total=len(jobs), unit="req", disable=not progress, leave=False)

    async def send(job: Job) -> Outcome:
        await asyncio.sleep(job.due_s)
        due_at = started_at + job.due_s if job.due_s else None
        async with room:
            due_at = due_at or time.perf_counter()
            outcome = await client.send(job, start_s=due_at - started_at, due_at=due_at)
        bar.update()
        return outcome

    try:
        return await asyncio.gather(*(send(job) for job in jobs))
    finally:
        bar.close()
