"""The command as a user runs it: what it prints and how it ends, without a running engine."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine import EngineConfig, ModelConfig, plan_memory
from engine.device_memory import cache_budget
from engine.memory_plan import GPU_DEFAULTS
from server.__main__ import main
from server.demo_model import DIRECTORY
from server.plan_command import count_parameters

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which nobody can listen: a start ends there, before the engine."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        yield listener.getsockname()[1]


def run(cache_home: Path, *argv: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "server", *argv],
        cwd=ROOT,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(cache_home),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(cache_home / "hub"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["serve", "/no/such/model"], 1, "/no/such/model is neither a directory nor a hub id"),
        (["plan", "owner/name"], 1, "owner/name is neither a local directory nor in the local"),
        (["serve", "--prot", "80"], 2, "unknown flag --prot; did you mean --port?"),
        (
            ["serve", "--allowed-local-media-path", "/no/such"],
            1,
            "--allowed-local-media-path /no/such is not a directory",
        ),
        (["serve", "-tp", "4"], 2, "--tensor-parallel-size 4 is not supported"),
    ],
)
def test_what_cannot_be_is_one_line(cache_home: Path, argv: list[str], status: int, said: str):
    result = run(cache_home, *argv)
    assert result.returncode == status
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_start_says_what_matters_and_a_taken_port_ends_it(cache_home: Path, taken_port: int):
    result = run(
        cache_home, "serve", "--host", "0.0.0.0", "--port", str(taken_port), "--trust-remote-code"
    )
    assert result.returncode == 1
    assert "this is the demo model" in result.stderr
    assert "ANYONE WHO CAN REACH 0.0.0.0" in result.stderr
    assert result.stderr.count("--trust-remote-code") == 1
    assert f"cannot listen on 0.0.0.0:{taken_port}" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_key_in_the_environment_keeps_a_public_server_closed(cache_home: Path, taken_port: int):
    result = run(
        cache_home, "serve", "--host", "0.0.0.0", "--port", str(taken_port), VLLM_API_KEY="geheim"
    )
    assert "ANYONE" not in result.stderr
    assert "geheim" not in result.stderr


def test_the_demo_model_needs_no_cache(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(blocked, "plan").returncode == 0


def test_plan_counts_weights_pages_and_states(
    monkeypatch: pytest.MonkeyPatch, cache_home: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    assert main(["plan", "--device", "cpu", "--memory", "64MiB", "--max-num-seqs", "6"]) == 0
    printed = capsys.readouterr().out
    assert "weights      19.1" in printed
    assert "one page     64 KiB of KV for 64 tokens" in printed  # 2 layers * 2 * 2 heads * 64 * 2 B
    rows = [line.split() for line in printed.partition("tokens each\n")[2].splitlines()[:4]]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 6]
    lengths = [int(row[1].replace(",", "")) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_plan_counts_the_tower_where_it_is_loaded(tmp_path: Path):
    parts = {"model.visual.a": 3, "mtp.b": 5, "model.language_model.c": 7}
    tensors = {name: np.zeros(size, np.float32) for name, size in parts.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    language_model, tower = count_parameters(tmp_path)
    assert language_model + tower == 10
    assert language_model == 7


def test_plan_in_float32_doubles_the_weights(
    monkeypatch: pytest.MonkeyPatch, cache_home: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    assert main(["plan", "--device", "cpu", "--memory", "1GiB", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "weights      38.3" in printed
    assert "one page     128 KiB" in printed


def test_plan_refuses_what_cannot_fit(
    monkeypatch: pytest.MonkeyPatch, cache_home: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    assert main(["plan", "--device", "cpu", "--memory", "10MiB"]) == 1
    assert "the weights take 19.1" in capsys.readouterr().err
    assert main(["plan", "--device", "cpu", "--memory", "24MiB", "--max-model-len", "32k"]) == 1
    assert "max_model_len 32768 does not fit" in capsys.readouterr().err


def test_plan_for_a_gpu_is_the_engine_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["plan", "--device", "cuda"]) == 1
    assert "no GPU is found here: say with --memory" in capsys.readouterr().err
    assert main(["plan", "--device", "cuda", "--memory", "8GiB"]) == 0
    for_8_gib = capsys.readouterr().out
    assert "memory       8.00 GiB of a GPU" in for_8_gib

    # The driver's program tells it too, for `auto` as for `cuda`.
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 8192\necho 16384\n")
    program.chmod(0o755)
    for device in ("auto", "cuda"):
        assert main(["plan", "--device", device]) == 0
        assert capsys.readouterr().out == for_8_gib

    model = ModelConfig.from_dir(DIRECTORY)
    weight_bytes = 2 * count_parameters(DIRECTORY)[0]
    config = EngineConfig(model_dir=str(DIRECTORY), num_real_tokens=1)
    budget = cache_budget(
        msgspec.structs.replace(model, vision=None),  # the weights have no tower
        config,
        defaults=GPU_DEFAULTS,
        dtype_bytes=2,
        weight_bytes=weight_bytes,
        total_bytes=8 << 30,
        free_bytes=(8 << 30) - weight_bytes,
    )
    plan = plan_memory(model, config, dtype_bytes=2, available_bytes=budget, defaults=GPU_DEFAULTS)
    assert f"{plan.num_pages:,} pages" in for_8_gib
    assert f"{plan.num_slots:,} states" in for_8_gib


@pytest.mark.parametrize("command", ["limits", "plan"])
def test_who_reads_only_the_first_lines_gets_no_traceback(command: str):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "server", command],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
