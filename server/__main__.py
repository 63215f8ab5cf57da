"""The `deltaserve` command: arguments into configs, configs into a running server.

The only reader of argv and of the environment, and the only place that knows both the server and
the process the engine runs in. Everything that can be wrong with what the user asked for ends here
as one line on standard error and a status other than 0.
"""

import asyncio
import ipaddress
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine import EngineConfig, EngineInfo, EngineStats, flush_log, start_log
from engine.process import EngineProcess
from server.app_front import AppFront
from server.arguments import (
    BenchArguments,
    LimitsArguments,
    ModelArguments,
    PlanArguments,
    ServeArguments,
    parse_arguments,
)
from server.assembly import FrontParts, FrontSettings
from server.bench.run import run_bench
from server.flags import version
from server.limit_flags import describe_limits
from server.model_source import ModelNotFound, locate_model
from server.plan_command import describe_plan
from server.serving import serve_front
from server.workers.pool import WorkerPool

DEMO_NAME = "deltaserve-demo"

_log = logging.getLogger("deltaserve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv, os.environ)
    if isinstance(arguments, BenchArguments):
        return run_bench(arguments)
    try:
        if isinstance(arguments, LimitsArguments):
            return _say(describe_limits(arguments.limits))
        if isinstance(arguments, PlanArguments):
            return _plan(arguments)
        return _serve(arguments)
    except (ModelNotFound, ValueError, OSError) as error:
        flush_log()
        print(f"deltaserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the server took over the signals
        return 130


def _plan(arguments: PlanArguments) -> int:
    model_dir = _locate(arguments.model)
    config = _engine_config(arguments.model, model_dir, num_real_tokens=0)
    return _say(describe_plan(config, arguments.memory_bytes))


def _say(text: str) -> int:
    """Print what a command found, for readers who may stop in the middle; the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # they have seen enough, and Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _serve(arguments: ServeArguments) -> int:
    started_at = time.monotonic()
    log_level = _log_level(arguments.log_level)
    start_log(log_level)
    _warn_about(arguments)
    model_dir = _locate(arguments.model)
    model_root = arguments.model.model or DEMO_NAME
    settings = FrontSettings(
        model_dir=str(model_dir),
        model_root=model_root,
        served_names=arguments.served_model_names or (model_root,),
        version=version(),
        created=int(time.time()),
        api_keys=arguments.api_keys,
        metrics_open=arguments.metrics_open,
        literal_control_tokens=arguments.literal_control_tokens,
        models_sampling=arguments.models_sampling,
        serves_media=not arguments.model.language_model_only,
        media_domains=arguments.media_domains,
        media_dir=arguments.media_dir,
        limits=arguments.limits,
        shutdown_timeout_s=arguments.shutdown_timeout_s,
        seed=arguments.seed,
        log_level=log_level,
        num_processes=arguments.api_workers,
    )
    if arguments.media_dir is not None and not Path(arguments.media_dir).is_dir():
        raise ValueError(f"--allowed-local-media-path {arguments.media_dir} is not a directory")
    parts = FrontParts(settings)
    config = msgspec.structs.replace(
        _engine_config(arguments.model, model_dir, num_real_tokens=parts.tokenizer.num_real_tokens),
        eos_token_ids=tuple(sorted(parts.validator.eos_ids)),
        max_waiting=arguments.queue_size,
        queue_timeout_s=arguments.queue_timeout_s,
    )
    return asyncio.run(_run(arguments, settings, parts, config, started_at))


async def _run(
    arguments: ServeArguments,
    settings: FrontSettings,
    parts: FrontParts,
    config: EngineConfig,
    started_at: float,
) -> int:
    """Serve from this process or, if several are wanted, from workers, until it ends."""
    pool: WorkerPool | None = None

    def on_stats(stats: EngineStats) -> None:
        metrics.on_stats(stats)

    engine = EngineProcess(
        config,
        unread_bounds=settings.unread_bounds,
        on_stats=on_stats,
        on_give_up=lambda: lifecycle.fail("the engine died too often"),
        on_started=lambda address: pool.engine_started(address) if pool else None,
        on_gone=lambda why: pool.engine_gone(why) if pool else None,
    )
    lifecycle = parts.lifecycle(engine.link)
    metrics = parts.metrics(engine.link)
    if arguments.api_workers > 1:
        front = pool = WorkerPool(
            arguments.api_workers,
            settings,
            lifecycle=lifecycle,
            metrics=metrics,
            on_lost=engine.link.forget,
        )
    else:
        app = parts.app(engine.link, lifecycle=lifecycle, metrics=metrics)
        front = AppFront(app, lifecycle, parts.limits, metrics)

    async def start() -> None:
        if pool is None:
            parts.checker.start()
        info = await engine.start()
        parts.note_engine(info)
        _say_what_runs(info)
        if pool is not None:
            await pool.wait_ready()

    async def stop() -> None:
        await engine.stop()
        await parts.close()

    return await serve_front(
        front,
        lifecycle=lifecycle,
        start=start,
        stop=stop,
        host=arguments.host,
        port=arguments.port,
        uds=arguments.uds,
        shutdown_timeout_s=arguments.shutdown_timeout_s,
        on_listening=lambda address: _log.info("listening on %s, loading", address),
        on_ready=lambda: _log.info(
            "ready after %.1f s, serving %s",
            time.monotonic() - started_at,
            ", ".join(settings.served_names),
        ),
    )


def _locate(arguments: ModelArguments) -> Path:
    return locate_model(arguments.model, revision=arguments.revision)


def _engine_config(
    arguments: ModelArguments, model_dir: Path, *, num_real_tokens: int
) -> EngineConfig:
    return EngineConfig(
        model_dir=str(model_dir),
        num_real_tokens=num_real_tokens,
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_step_tokens=arguments.max_num_batched_tokens,
        cache_bytes=arguments.cache_bytes,
        memory_utilization=arguments.memory_utilization,
        num_threads=arguments.num_threads,
        device=arguments.device,
        enforce_eager=arguments.enforce_eager,
        prefix_cache=arguments.prefix_cache,
        deterministic=arguments.deterministic,
        language_model_only=arguments.language_model_only,
    )


def _warn_about(arguments: ServeArguments) -> None:
    if arguments.model.model is None:
        _log.info(
            "no MODEL was given: this is the demo model, which is tiny and knows little; "
            "give a directory or a hub id to serve another"
        )
    if arguments.ignored_flags:
        _log.info("accepted, but not needed here: %s", ", ".join(arguments.ignored_flags))
    if arguments.uds is None and not arguments.api_keys and not _is_local(arguments.host):
        _log.warning(
            "ANYONE WHO CAN REACH %s:%d CAN USE THIS SERVER: it listens beyond this machine and no "
            "--api-key is set",
            arguments.host,
            arguments.port,
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log_level(name: str) -> int:
    return logging.DEBUG if name == "trace" else logging.getLevelNamesMapping()[name.upper()]


def _say_what_runs(info: EngineInfo) -> None:
    for warning in info.warnings:
        _log.warning("%s", warning)
    _log.info(
        "%s, %.1f M parameters in %s on %s, loaded in %.1f s; %d sequences at once, %d tokens "
        "long at most, %d tokens in all, %.2f GiB of cache",
        info.architecture,
        info.num_parameters / 1e6,
        info.dtype,
        info.device,
        info.load_s,
        info.max_num_seqs,
        info.max_model_len,
        info.num_kv_tokens,
        info.cache_bytes / 2**30,
    )
    _log.info(
        "prefix cache: %s",
        f"room for {info.num_saved_slots} saved states" if info.num_saved_slots else "off",
    )
    _log.info("images and videos: %s", "taken" if info.serves_media else "not taken, text only")


if __name__ == "__main__":
    sys.exit(main())
