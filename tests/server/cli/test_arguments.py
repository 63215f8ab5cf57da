"""argv -> frozen arguments, or status 2 and one readable line."""

import pytest

from server.arguments import (
    BenchArguments,
    PlanArguments,
    ServeArguments,
    parse_arguments,
)


def serve(*argv: str, environment: dict[str, str] | None = None) -> ServeArguments:
    arguments = parse_arguments(["serve", *argv], environment or {})
    assert isinstance(arguments, ServeArguments)
    return arguments


def bench(*argv: str) -> BenchArguments:
    arguments = parse_arguments(["bench", *argv], {})
    assert isinstance(arguments, BenchArguments)
    return arguments


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(argv, {})
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.endswith("\n")
    return message


def test_defaults():
    arguments = serve()
    assert arguments.model.model is None
    assert arguments.model.max_model_len is None
    assert arguments.model.memory_utilization == 0.9
    assert (arguments.host, arguments.port, arguments.uds) == ("127.0.0.1", 8000, None)
    assert arguments.api_keys == ()
    assert arguments.queue_size == 1024
    assert arguments.queue_timeout_s == 60
    assert arguments.limits.request_timeout_s == 600
    assert arguments.shutdown_timeout_s == 30
    assert arguments.ignored_flags == ()


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["-tp", "1", "some/model"], "model", "some/model"),
        (["--tp-size=1", "--model", "some/model"], "model", "some/model"),
        (["--tp", "1", "--model-path", "some/model"], "model", "some/model"),
        (["--tensor-parallel-size", "1"], "model", None),
        (["--max-model-len", "262144"], "max_model_len", 262144),
        (["--context-length", "256k"], "max_model_len", 262144),
        (["--max-model-len", "1M"], "max_model_len", 1048576),
        (["--max-model-len", "auto"], "max_model_len", None),
        (["--gpu-memory-utilization", "0.5"], "memory_utilization", 0.5),
        (["--mem-fraction-static", "1"], "memory_utilization", 1.0),
        (["--max-num-seqs", "7"], "max_num_seqs", 7),
        (["--max-running-requests", "7"], "max_num_seqs", 7),
        (["--max-num-batched-tokens", "512"], "max_num_batched_tokens", 512),
        (["--chunked-prefill-size", "512"], "max_num_batched_tokens", 512),
        (["--cache-memory", "4GiB"], "cache_bytes", 4 * 2**30),
        (["--cache-memory", "1.5g"], "cache_bytes", 3 * 2**29),
        (["--cache-memory", "4GB"], "cache_bytes", 4 * 10**9),
        (["--cache-memory", "4096"], "cache_bytes", 4096),
        (["--dtype", "half"], "dtype", "float16"),
        (["--kv-cache-dtype", "auto"], "dtype", "auto"),
        (["--threads", "3"], "num_threads", 3),
        ([], "device", "auto"),
        (["--device", "cuda"], "device", "cuda"),
        (["--enforce-eager"], "enforce_eager", True),
        (["--no-prefix-cache"], "prefix_cache", False),
        (["--deterministic"], "deterministic", True),
        (["--enable-deterministic-inference"], "deterministic", True),
        ([], "deterministic", False),
        (["--no-enable-prefix-caching"], "prefix_cache", False),
        (["--disable-radix-cache"], "prefix_cache", False),
        (["--enable-prefix-caching"], "prefix_cache", True),
        ([], "enforce_eager", False),
        (["--language-model-only"], "language_model_only", True),
        ([], "language_model_only", False),
        (["--revision", "v1"], "revision", "v1"),
    ],
)
def test_model_flags_and_their_aliases(flags: list[str], field: str, value: object):
    assert getattr(serve(*flags).model, field) == value


def test_the_number_of_api_workers_and_its_alias():
    assert serve().api_workers == 1
    assert serve("--api-workers", "3").api_workers == 3
    assert serve("--api-server-count", "2").api_workers == 2


@pytest.mark.parametrize(
    ("flags", "models"),
    [
        ([], False),
        (["--sampling-defaults", "openai"], False),
        (["--sampling-defaults", "model"], True),
        (["--generation-config", "vllm"], False),
        (["--generation-config", "auto"], True),
    ],
)
def test_whose_sampling_defaults_and_its_alias(flags: list[str], models: bool):
    assert serve(*flags).models_sampling is models


def test_flags_of_other_servers_that_are_not_needed_are_named():
    arguments = serve(
        "--reasoning-parser", "qwen3", "--tool-call-parser", "qwen3_coder",
        "--enable-auto-tool-choice", "--trust-remote-code", "--skip-mm-profiling",
        "--limit-mm-per-prompt", '{"image": 2}', "--mm-processor-cache-gb", "0",
    )  # fmt: skip
    assert arguments.ignored_flags == (
        "--reasoning-parser",
        "--tool-call-parser",
        "--enable-auto-tool-choice",
        "--trust-remote-code",
        "--limit-mm-per-prompt",
        "--mm-processor-cache-gb",
        "--skip-mm-profiling",
    )


def test_keys_come_from_flags_else_from_the_environment():
    environment = {"DELTASERVE_API_KEY": "ours", "VLLM_API_KEY": "theirs"}
    assert serve("--api-key", "a", "--api-key", "b", environment=environment).api_keys == ("a", "b")
    assert serve(environment=environment).api_keys == ("ours",)
    assert serve(environment={"VLLM_API_KEY": "theirs"}).api_keys == ("theirs",)
    assert serve(environment={"DELTASERVE_API_KEY": "", "VLLM_API_KEY": "k\n"}).api_keys == ("k",)
    assert serve(environment={"VLLM_API_KEY": " "}).api_keys == ()


def test_a_key_in_the_environment_is_checked_as_a_flag_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        serve(environment={"DELTASERVE_API_KEY": "two words"})
    message = capsys.readouterr().err
    assert "$DELTASERVE_API_KEY: a key is" in message
    assert "two words" not in message


def test_where_media_may_come_from():
    assert (serve().media_domains, serve().media_dir) == ((), None)
    given = serve(
        "m", "--allowed-media-domains", "a.org", "b.org", "--allowed-local-media-path", "/pictures"
    )
    assert (given.media_domains, given.media_dir) == (("a.org", "b.org"), "/pictures")


def test_several_served_names():
    assert serve("m", "--served-model-name", "a", "b").served_model_names == ("a", "b")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("serve --tensor-paralel-size 2", "did you mean --tensor-parallel-size?"),
        ("serve --max-model 5", "did you mean --max-model-len?"),
        ("serve --api-keys=5", "did you mean --api-key?"),
        ("serve --frobnicate", "unknown flag --frobnicate (see"),
        ("serve -tp 2", "--tensor-parallel-size 2 is not supported"),
        ("serve --tp 0", "0 is less than 1"),
        ("serve a b", "unexpected argument b"),
        ("serve a --model b", "two models given: a and b"),
        ("serve --served-model-name name path", "write MODEL before --served-model-name"),
        ("serve --allowed-media-domains a.org path", "write MODEL before --allowed-media-domains"),
        ("serve --port 65536", "65536 is not between 0 and 65535"),
        ("serve --port 1e3", "1e3 is not a whole number"),
        ("serve --max-model-len 0", "0 is not a length"),
        ("serve --max-model-len 8q", "8q is not a length"),
        ("serve --gpu-memory-utilization 1.1", "1.1 is not a share"),
        ("serve --gpu-memory-utilization nan", "nan is not a number"),
        ("serve --cache-memory 4XB", "4XB is not a size"),
        ("serve --queue-timeout -1", "-1 is not above 0"),
        ("serve --request-timeout inf", "inf is not a number"),
        ("serve --dtype int8", "invalid choice: 'int8'"),
        ("serve --kv-cache-dtype fp8", "invalid choice: 'fp8'"),
        ("serve --threads", "expected one argument"),
        ("bench --prompt-tokens 9:5", "9:5 is not a number of tokens"),
        ("bench --shared-prefix-tokens 600", "--shared-prefix-tokens is more than the shortest"),
        ("bench --base-url localhost:8000", "is not an http:// or https:// URL"),
        ("plan --memory lots", "lots is not a size"),
        ("launch", "invalid choice: 'launch'"),
    ],
)
def test_wrong_command_lines(capsys: pytest.CaptureFixture[str], argv: str, said: str):
    assert said in refused(capsys, *argv.split())


def test_a_refused_key_is_not_repeated(capsys: pytest.CaptureFixture[str]):
    message = refused(capsys, "serve", "--api-key", "geheim\u00e9")
    assert "ASCII" in message
    assert "geheim" not in message


def test_plan_takes_the_flags_of_serve():
    arguments = parse_arguments(["plan", "m", "--memory", "2GiB", "--max-num-seqs", "3"], {})
    assert isinstance(arguments, PlanArguments)
    assert arguments.memory_bytes == 2 * 2**30
    assert (arguments.model.model, arguments.model.max_num_seqs) == ("m", 3)


def test_bench_defaults_and_ranges():
    assert bench().concurrency == 8
    assert bench("--request-rate", "2.5").concurrency is None
    arguments = bench("--base-url", "http://host:1/v1/", "--prompt-tokens", "5:9")
    assert arguments.base_url == "http://host:1"
    assert arguments.prompt_tokens == (5, 9)
    assert arguments.output_tokens == (128, 128)


@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"], ["bench", "--help"]])
def test_help_is_a_success(capsys: pytest.CaptureFixture[str], argv: list[str]):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(argv, {})
    assert exit_info.value.code == 0
    assert "usage: deltaserve" in capsys.readouterr().out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments([], {})
    assert exit_info.value.code == 2
    assert "commands:" in capsys.readouterr().out
