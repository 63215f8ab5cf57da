"""The flags of the command line: their names, aliases, defaults and what help says of them.

Flags that people bring from vLLM and SGLang are aliases here; what this server does not need is
accepted and named in `ServeArguments.ignored_flags`. What comes of them is in `server.arguments`.
"""

import argparse
import importlib.metadata
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
from server.limit_flags import setting

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
APIS_DEFAULTS = ("openai", "vllm")  # as SGLang and vLLM call them
MODELS_DEFAULTS = ("model", "auto")
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


def version() -> str:
    """Of the installed distribution; "0+unknown" when run from a checkout that is not installed."""
    try:
        return importlib.metadata.version("deltaserve")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


class Parser(argparse.ArgumentParser):
    """One line on a wrong command line, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def build_parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
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


def _add_model_flags(parser: Parser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="local directory or hub id (default: the bundled demo model)",
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


def _add_serve_flags(parser: Parser) -> None:
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
        "--sampling-defaults", "--generation-config", choices=(*APIS_DEFAULTS, *MODELS_DEFAULTS),
        default="openai", metavar="WHOSE",
        help="what a request leaves out: openai, or model (its generation_config.json) "
        "(default: openai, and the model's temperature)",
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


def _add_limit_flag(parser: Parser) -> None:
    parser.add_argument_group("limits").add_argument(
        "--limit", action="append", default=[], type=setting, metavar="NAME=VALUE",
        help="set one of the limits that `deltaserve limits` lists; may be repeated "
        f"(before these, ${LIMITS_VARIABLE}, separated by spaces)",
    )  # fmt: skip


def _add_bench_flags(parser: Parser) -> None:
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
