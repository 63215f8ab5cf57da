"""The command line: flag definitions, and argv parsed into frozen arguments.

Owns the names, defaults and limits of flags, and nothing else: it reads no environment (what it
needs of it is passed in), touches no file and starts nothing. Flags that people bring from vLLM
and SGLang are aliases here; what this server does not need is accepted and named in
`ServeArguments.ignored_flags`.

A wrong command line ends the process with status 2 and one readable line, as argparse does.
"""

import argparse
import difflib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from server.flag_values import (
    at_least,
    between,
    key,
    length,
    positive,
    share,
    size,
    temperature,
    token_range,
)
from server.limit_flags import setting, with_settings
from server.limits import DEFAULT_LIMITS, Limits

LIMITS_VARIABLE = "DELTASERVE_LIMITS"
API_KEY_VARIABLES = ("DELTASERVE_API_KEY", "VLLM_API_KEY")
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
DTYPES = {
    "auto": "auto",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
    "half": "float16",
    "float": "float32",
}
DEVICES = ("auto", "cpu", "cuda")
IGNORED = {  # flag -> its value's name, or None for a switch
    "--reasoning-parser": "NAME",
    "--tool-call-parser": "NAME",
    "--enable-auto-tool-choice": None,
    "--enable-prefix-caching": None,
    "--trust-remote-code": None,
    "--limit-mm-per-prompt": "JSON",
    "--mm-processor-cache-gb": "GIB",
    "--skip-mm-profiling": None,
}


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
    parser, commands = _build_parsers()
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


def version() -> str:
    """Of the installed distribution; "0+unknown" when run from a checkout that is not installed."""
    try:
        return importlib.metadata.version("deltaserve")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


class _Parser(argparse.ArgumentParser):
    """One line on a wrong command line, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def _build_parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="deltaserve",
        description="OpenAI-compatible serving for the Qwen3.5 family.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"deltaserve {version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands = {
        name: subparsers.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            usage=f"deltaserve {name} {operand}[flags]",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
        )
        for name, operand, what in (
            ("serve", "[MODEL] ", "serve a model over HTTP"),
            ("bench", "", "measure a running OpenAI-compatible server under load"),
            ("plan", "[MODEL] ", "say what fits into memory, without loading anything"),
            ("limits", "", "list what requests may be and hold, and what each limit may be set to"),
        )
    }
    _add_model_flags(commands["serve"])
    _add_serve_flags(commands["serve"])
    _add_model_flags(commands["plan"])
    commands["plan"].add_argument(
        "--memory", type=size, metavar="SIZE", help="memory to plan for (default: what is free)"
    )
    _add_bench_flags(commands["bench"])
    _add_limit_flag(commands["limits"])
    return parser, commands


def _add_model_flags(parser: _Parser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="local directory or hub id (default: a tiny random demo model)",
    )  # fmt: skip
    model.add_argument(
        "--model", "--model-path", dest="model_flag", metavar="MODEL", help="the same, as a flag"
    )
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    model.add_argument(
        "--dtype", choices=tuple(DTYPES), default="auto", metavar="TYPE",
        help="auto (the checkpoint's), bfloat16, float16 or float32",
    )  # fmt: skip
    model.add_argument(
        "--max-model-len", "--context-length", type=length, metavar="N",
        help="longest sequence in tokens: 262144, 256k or auto (default: auto)",
    )  # fmt: skip
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--device", choices=DEVICES, default="auto", metavar="NAME",
        help="auto (a GPU if there is one), cpu or cuda",
    )  # fmt: skip
    engine.add_argument(
        "--tensor-parallel-size", "--tp-size", "--tp", "-tp", type=at_least(1), default=1,
        metavar="N", help="devices to split the model over; only 1 today",
    )  # fmt: skip
    engine.add_argument(
        "--max-num-seqs", "--max-running-requests", type=at_least(1), metavar="N",
        help="sequences that run at once (default: by the device)",
    )  # fmt: skip
    engine.add_argument(
        "--max-num-batched-tokens", "--chunked-prefill-size", type=at_least(1), metavar="N",
        help="tokens computed in one step (default: by the device)",
    )  # fmt: skip
    engine.add_argument(
        "--gpu-memory-utilization", "--mem-fraction-static", type=share, default=0.9,
        metavar="F",
        help="share of a GPU's memory, or of a CPU's left after the weights (default: 0.9)",
    )  # fmt: skip
    engine.add_argument(
        "--cache-memory", type=size, metavar="SIZE",
        help="memory for KV pages and states, e.g. 4GiB (default: by the share above)",
    )  # fmt: skip
    engine.add_argument(
        "--kv-cache-dtype", choices=("auto",), default="auto", metavar="TYPE",
        help="auto: the model's; nothing else today",
    )  # fmt: skip
    engine.add_argument(
        "--no-prefix-cache", "--no-enable-prefix-caching", "--disable-radix-cache",
        dest="prefix_cache", action="store_false",
        help="compute every prompt whole, and leave the memory to pages",
    )  # fmt: skip
    engine.add_argument(
        "--deterministic", "--enable-deterministic-inference", action="store_true",
        help="bits of an answer depend on its request alone; slower on a GPU",
    )  # fmt: skip
    engine.add_argument("--threads", type=at_least(1), metavar="N", help="CPU threads of the model")
    engine.add_argument(
        "--enforce-eager", action="store_true", help="no CUDA graphs: slower, to find faults"
    )
    engine.add_argument(
        "--language-model-only", action="store_true",
        help="leave the vision tower out: no images and videos, more memory",
    )  # fmt: skip


def _add_serve_flags(parser: _Parser) -> None:
    http = parser.add_argument_group("HTTP")
    http.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    http.add_argument(
        "--port", type=between(0, 65535), default=8000, metavar="N", help="(%(default)s)"
    )
    http.add_argument("--uds", metavar="PATH", help="listen on a unix socket instead")
    http.add_argument(
        "--api-workers", "--api-server-count", type=between(1, 64), default=1, metavar="N",
        help="processes that answer HTTP, all before one engine (%(default)s)",
    )  # fmt: skip
    http.add_argument(
        "--served-model-name", nargs="+", default=[], metavar="NAME",
        help="names that clients use (default: MODEL)",
    )  # fmt: skip
    http.add_argument(
        "--api-key", action="append", default=[], type=key, metavar="KEY",
        help=f"require this key; may be repeated (else ${' or $'.join(API_KEY_VARIABLES)})",
    )  # fmt: skip
    http.add_argument(
        "--literal-control-tokens", action="store_true",
        help="names of control tokens in user and tool messages stay text",
    )  # fmt: skip
    http.add_argument(
        "--allowed-media-domains", nargs="+", default=[], metavar="HOST",
        help="fetch images and videos from these hosts and those below them; * is all "
        "(default: none)",
    )  # fmt: skip
    http.add_argument(
        "--allowed-local-media-path", metavar="DIR",
        help="take file: URLs of images and videos in this directory (default: none)",
    )  # fmt: skip
    http.add_argument("--metrics-open", action="store_true", help="serve /metrics without a key")
    times = parser.add_argument_group("queue and times")
    times.add_argument(
        "--queue-size", type=at_least(1), default=1024, metavar="N",
        help="waiting requests before 429 (%(default)s)",
    )  # fmt: skip
    for flag, default, what in (
        ("--queue-timeout", 60.0, "longest wait in the queue before 503"),
        ("--request-timeout", 600.0, "longest whole request"),
        ("--shutdown-timeout", 30.0, "time for running requests to finish after SIGTERM"),
    ):
        times.add_argument(
            flag, type=positive, default=default, metavar="S", help=f"{what} (%(default)g s)"
        )
    _add_limit_flag(parser)
    other = parser.add_argument_group("other")
    other.add_argument(
        "--seed", type=at_least(0), metavar="N",
        help="draw the seeds of requests that name none from this one (default: from chance)",
    )  # fmt: skip
    other.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", metavar="LEVEL",
        help=f"{', '.join(LOG_LEVELS)} (%(default)s)",
    )  # fmt: skip
    ignored = parser.add_argument_group(
        "accepted, not needed",
        "The chat template decides how output is parsed; code from a checkpoint is never run; the "
        "window bounds what a prompt holds; prefixes are cached anyway.",
    )
    for flag, metavar in IGNORED.items():
        if metavar is None:
            ignored.add_argument(flag, action="store_true")
        else:
            ignored.add_argument(flag, metavar=metavar)


def _add_limit_flag(parser: _Parser) -> None:
    parser.add_argument_group("limits").add_argument(
        "--limit", action="append", default=[], type=setting, metavar="NAME=VALUE",
        help="set one of the limits that `deltaserve limits` lists; may be repeated "
        f"(before these, ${LIMITS_VARIABLE}, separated by spaces)",
    )  # fmt: skip


def _add_bench_flags(parser: _Parser) -> None:
    target = parser.add_argument_group("target")
    target.add_argument(
        "--base-url", default="http://127.0.0.1:8000", metavar="URL",
        help="with or without /v1 (%(default)s)",
    )  # fmt: skip
    target.add_argument("--model", metavar="NAME", help="(default: the first one it lists)")
    target.add_argument("--api-key", type=key, metavar="KEY")
    target.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions",
        help="completions sends exact token counts, chat sends text (%(default)s)",
    )  # fmt: skip
    load = parser.add_argument_group("load")
    load.add_argument("--num-requests", type=at_least(1), default=64, metavar="N")
    load.add_argument(
        "--concurrency", type=at_least(1), metavar="N",
        help="requests at once (default: 8, or no bound with --request-rate)",
    )  # fmt: skip
    load.add_argument(
        "--request-rate", type=positive, metavar="R",
        help="Poisson arrivals per second instead of one after the other",
    )  # fmt: skip
    for flag, default in (("--prompt-tokens", "512"), ("--output-tokens", "128")):
        load.add_argument(
            flag, type=token_range, default=default, metavar="N[:M]", help="(%(default)s)"
        )
    load.add_argument(
        "--shared-prefix-tokens", type=at_least(0), default=0, metavar="N",
        help="prompt tokens that all requests share (%(default)s)",
    )  # fmt: skip
    load.add_argument("--temperature", type=temperature, default=0.0, metavar="T")
    load.add_argument("--ignore-eos", action="store_true", help="always generate all output tokens")
    load.add_argument("--seed", type=at_least(0), default=0, metavar="N")
    load.add_argument("--timeout", type=positive, default=600.0, metavar="S", help="per request")
    load.add_argument("--output", metavar="FILE", help="write the results as JSON")


def _model_arguments(parser: _Parser, parsed: argparse.Namespace) -> ModelArguments:
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
    parser: _Parser,
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


def _limits(parser: _Parser, parsed: argparse.Namespace, environment: Mapping[str, str]) -> Limits:
    """The defaults, what the environment changes, what flags change."""
    try:
        limits = with_settings(DEFAULT_LIMITS, environment.get(LIMITS_VARIABLE, "").split())
    except argparse.ArgumentTypeError as error:
        parser.error(f"${LIMITS_VARIABLE}: {error}")
    return with_settings(limits, parsed.limit)


def _environment_keys(parser: _Parser, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The key of the first variable that is set, without the space that files put around it."""
    for name in API_KEY_VARIABLES:
        if text := environment.get(name, "").strip():
            try:
                return (key(text),)
            except argparse.ArgumentTypeError as error:
                parser.error(f"${name}: {error}")
    return ()


def _bench_arguments(parser: _Parser, parsed: argparse.Namespace) -> BenchArguments:
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


def _unknown_message(unknown: list[str], parser: _Parser) -> str:
    flags = [word.split("=")[0] for word in unknown if word.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]}"
    near = difflib.get_close_matches(flags[0], parser.flags, n=1)
    return f"unknown flag {flags[0]}" + (f"; did you mean {near[0]}?" if near else "")
