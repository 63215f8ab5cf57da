"""argv parsed into frozen arguments, by the flags of `server.flags`.

Reads no environment (what it needs of it is passed in), touches no file and starts nothing.

A wrong command line ends the process with status 2 and one readable line, as argparse does.
"""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from server.flag_values import key
from server.flags import (
    API_KEY_VARIABLES,
    DTYPES,
    IGNORED,
    LIMITS_VARIABLE,
    MODELS_DEFAULTS,
    Parser,
    build_parsers,
)
from server.limit_flags import with_settings
from server.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArguments:
    """Which checkpoint, and how the engine runs it. None: the engine decides."""

    model: str | None  # None: the bundled demo model
    revision: str | None
    dtype: str
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    memory_utilization: float
    cache_bytes: int | None
    num_threads: int | None
    device: str
    enforce_eager: bool
    prefix_cache: bool
    deterministic: bool
    language_model_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    model: ModelArguments
    served_model_names: tuple[str, ...]  # empty: the model as given
    host: str
    port: int
    uds: str | None
    api_workers: int
    api_keys: tuple[str, ...]
    metrics_open: bool
    literal_control_tokens: bool
    models_sampling: bool  # what a request leaves out is as in generation_config.json
    media_domains: tuple[str, ...]  # from which images and videos may be fetched
    media_dir: str | None  # in which they may be read
    queue_size: int
    queue_timeout_s: float
    limits: Limits
    shutdown_timeout_s: float
    seed: int | None  # None: requests without a seed never repeat
    log_level: str
    ignored_flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanArguments:
    model: ModelArguments
    memory_bytes: int | None  # None: what this machine has free


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchArguments:
    base_url: str
    model: str | None  # None: the first one the server lists
    api_key: str | None
    endpoint: str  # "completions" or "chat"
    num_requests: int
    concurrency: int | None  # None: no bound
    request_rate: float | None  # per second; None: a new request when one ends
    prompt_tokens: tuple[int, int]  # least, most
    output_tokens: tuple[int, int]
    shared_prefix_tokens: int
    temperature: float
    ignore_eos: bool
    seed: int
    timeout_s: float
    output: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsArguments:
    limits: Limits


Arguments = ServeArguments | PlanArguments | BenchArguments | LimitsArguments


def parse_arguments(argv: Sequence[str], environment: Mapping[str, str]) -> Arguments:
    """Parse argv. Exits with status 2 and one line if it is wrong, 0 for --help and --version."""
    parser, commands = build_parsers()
    parsed, unknown = parser.parse_known_args(argv)
    if parsed.command is None:
        parser.print_help()
        raise SystemExit(2)
    command = commands[parsed.command]
    if unknown:
        command.error(_unknown_message(unknown, command))
    if parsed.command == "bench":
        return _bench_arguments(command, parsed)
    if parsed.command == "limits":
        return LimitsArguments(limits=_limits(command, parsed, environment))
    model = _model_arguments(command, parsed)
    if parsed.command == "plan":
        return PlanArguments(model=model, memory_bytes=parsed.memory)
    return _serve_arguments(command, model, parsed, environment)


def _model_arguments(parser: Parser, parsed: argparse.Namespace) -> ModelArguments:
    if parsed.model and parsed.model_flag and parsed.model != parsed.model_flag:
        parser.error(f"two models given: {parsed.model} and {parsed.model_flag}")
    if parsed.tensor_parallel_size > 1:
        parser.error(
            f"--tensor-parallel-size {parsed.tensor_parallel_size} is not supported: "
            "this version runs on one device"
        )
    return ModelArguments(
        model=parsed.model or parsed.model_flag,
        revision=parsed.revision,
        dtype=DTYPES[parsed.dtype],
        max_model_len=parsed.max_model_len,
        max_num_seqs=parsed.max_num_seqs,
        max_num_batched_tokens=parsed.max_num_batched_tokens,
        memory_utilization=parsed.gpu_memory_utilization,
        cache_bytes=parsed.cache_memory,
        num_threads=parsed.threads,
        device=parsed.device,
        enforce_eager=parsed.enforce_eager,
        prefix_cache=parsed.prefix_cache,
        deterministic=parsed.deterministic,
        language_model_only=parsed.language_model_only,
    )


def _serve_arguments(
    parser: Parser,
    model: ModelArguments,
    parsed: argparse.Namespace,
    environment: Mapping[str, str],
) -> ServeArguments:
    given = vars(parsed)
    for flag in ("--served-model-name", "--allowed-media-domains"):
        if model.model is None and len(given[flag[2:].replace("-", "_")]) > 1:
            parser.error(f"write MODEL before {flag}, which takes every word after it")
    return ServeArguments(
        model=model,
        served_model_names=tuple(parsed.served_model_name),
        host=parsed.host,
        port=parsed.port,
        uds=parsed.uds,
        api_workers=parsed.api_workers,
        api_keys=tuple(parsed.api_key) or _environment_keys(parser, environment),
        metrics_open=parsed.metrics_open,
        literal_control_tokens=parsed.literal_control_tokens,
        models_sampling=parsed.sampling_defaults in MODELS_DEFAULTS,
        media_domains=tuple(parsed.allowed_media_domains),
        media_dir=parsed.allowed_local_media_path,
        queue_size=parsed.queue_size,
        queue_timeout_s=parsed.queue_timeout,
        limits=replace(
            _limits(parser, parsed, environment), request_timeout_s=parsed.request_timeout
        ),
        shutdown_timeout_s=parsed.shutdown_timeout,
        seed=parsed.seed,
        log_level=parsed.log_level,
        ignored_flags=tuple(flag for flag in IGNORED if given[flag[2:].replace("-", "_")]),
    )


def _limits(parser: Parser, parsed: argparse.Namespace, environment: Mapping[str, str]) -> Limits:
    """The defaults, what the environment changes, what flags change."""
    try:
        limits = with_settings(DEFAULT_LIMITS, environment.get(LIMITS_VARIABLE, "").split())
    except argparse.ArgumentTypeError as error:
        parser.error(f"${LIMITS_VARIABLE}: {error}")
    return with_settings(limits, parsed.limit)


def _environment_keys(parser: Parser, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The key of the first variable that is set, without the space that files put around it."""
    for name in API_KEY_VARIABLES:
        if text := environment.get(name, "").strip():
            try:
                return (key(text),)
            except argparse.ArgumentTypeError as error:
                parser.error(f"${name}: {error}")
    return ()


def _bench_arguments(parser: Parser, parsed: argparse.Namespace) -> BenchArguments:
    if parsed.shared_prefix_tokens > parsed.prompt_tokens[0]:
        parser.error("--shared-prefix-tokens is more than the shortest --prompt-tokens")
    if not re.match(r"https?://[^/]+", parsed.base_url):
        parser.error(f"--base-url {parsed.base_url} is not an http:// or https:// URL")
    concurrency = parsed.concurrency
    if concurrency is None and parsed.request_rate is None:
        concurrency = 8
    return BenchArguments(
        base_url=parsed.base_url.rstrip("/").removesuffix("/v1"),
        model=parsed.model,
        api_key=parsed.api_key,
        endpoint=parsed.endpoint,
        num_requests=parsed.num_requests,
        concurrency=concurrency,
        request_rate=parsed.request_rate,
        prompt_tokens=parsed.prompt_tokens,
        output_tokens=parsed.output_tokens,
        shared_prefix_tokens=parsed.shared_prefix_tokens,
        temperature=parsed.temperature,
        ignore_eos=parsed.ignore_eos,
        seed=parsed.seed,
        timeout_s=parsed.timeout,
        output=parsed.output,
    )


def _unknown_message(unknown: list[str], parser: Parser) -> str:
    flags = [word.split("=")[0] for word in unknown if word.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]}"
    near = difflib.get_close_matches(flags[0], parser.flags, n=1)
    return f"unknown flag {flags[0]}" + (f"; did you mean {near[0]}?" if near else "")
