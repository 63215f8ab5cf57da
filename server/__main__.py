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

from engine import EngineConfig, EngineInfo, EngineStats, ModelConfig
from engine.process import EngineProcess
from server.app import create_app
from server.arguments import (
    BenchArguments,
    ModelArguments,
    PlanArguments,
    ServeArguments,
    parse_arguments,
    version,
)
from server.bench.run import run_bench
from server.checkpoint_text import read_checkpoint_text
from server.constraints import ConstraintReader, GrammarChecker
from server.http_limits import HttpLimits
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.model_source import ModelNotFound, locate_model
from server.plan_command import describe_plan
from server.serving import serve
from server.validate import Validator

DEMO_NAME = "babbler"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger("deltaserve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv, os.environ)
    if isinstance(arguments, BenchArguments):
        return run_bench(arguments)
    try:
        if isinstance(arguments, PlanArguments):
            return _plan(arguments)
        return _serve(arguments)
    except (ModelNotFound, ValueError, OSError) as error:
        print(f"deltaserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the server took over the signals
        return 130


def _plan(arguments: PlanArguments) -> int:
    model_dir = _locate(arguments.model)
    config = _engine_config(arguments.model, model_dir, num_real_tokens=0)
    print(describe_plan(config, arguments.memory_bytes))
    return 0


def _serve(arguments: ServeArguments) -> int:
    started_at = time.monotonic()
    logging.basicConfig(level=_log_level(arguments.log_level), format=LOG_FORMAT)
    _warn_about(arguments)
    model_dir = _locate(arguments.model)
    model_config = ModelConfig.from_dir(model_dir)
    text = read_checkpoint_text(model_dir)
    checker = GrammarChecker()
    served_names = arguments.served_model_names or (arguments.model.model or DEMO_NAME,)
    validator = Validator(
        text.tokenizer,
        text.template,
        model_config,
        text.defaults,
        served_names=served_names,
        max_model_len=model_config.max_position_embeddings,  # until the engine knows what fits
        seed=arguments.seed,
        constraints=ConstraintReader(checker),
        literal_control_tokens=arguments.literal_control_tokens,
    )

    def on_stats(stats: EngineStats) -> None:
        metrics.on_stats(stats)

    def on_give_up() -> None:
        lifecycle.fail("the engine died too often")

    engine = EngineProcess(
        msgspec.structs.replace(
            _engine_config(
                arguments.model, model_dir, num_real_tokens=text.tokenizer.num_real_tokens
            ),
            eos_token_ids=tuple(sorted(validator.eos_ids)),
            max_waiting=arguments.queue_size,
            queue_timeout_s=arguments.queue_timeout_s,
        ),
        on_stats=on_stats,
        on_give_up=on_give_up,
    )
    lifecycle = Lifecycle(engine, request_timeout_s=arguments.request_timeout_s)
    metrics = Metrics(engine, model_name=served_names[0])
    limits = HttpLimits(request_timeout_s=arguments.request_timeout_s)
    app = create_app(
        engine,
        validator,
        text.tokenizer,
        served_names=served_names,
        version=version(),
        model_root=arguments.model.model or DEMO_NAME,
        lifecycle=lifecycle,
        metrics=metrics,
        api_keys=arguments.api_keys,
        open_metrics=arguments.metrics_open,
        limits=limits,
    )

    async def start() -> None:
        checker.start()
        info = await engine.start()
        validator.max_model_len = info.max_model_len
        _say_what_runs(info)

    async def stop() -> None:
        await engine.stop()
        checker.close()

    return asyncio.run(
        serve(
            app,
            lifecycle=lifecycle,
            start=start,
            stop=stop,
            host=arguments.host,
            port=arguments.port,
            uds=arguments.uds,
            limits=limits,
            shutdown_timeout_s=arguments.shutdown_timeout_s,
            on_listening=lambda address: _log.info("listening on %s, loading", address),
            on_ready=lambda: _log.info(
                "ready after %.1f s, serving %s",
                time.monotonic() - started_at,
                ", ".join(served_names),
            ),
        )
    )


def _locate(arguments: ModelArguments) -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(cache_home) if cache_home else Path.home() / ".cache"
    return locate_model(
        arguments.model, revision=arguments.revision, babbler_cache=cache / "deltaserve"
    )


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
    )


def _warn_about(arguments: ServeArguments) -> None:
    if arguments.model.model is None:
        _log.warning(
            "no MODEL was given: this is the babbler, a tiny demo model with random weights; "
            "everything it says is noise"
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


if __name__ == "__main__":
    sys.exit(main())
