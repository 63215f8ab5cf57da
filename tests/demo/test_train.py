"""A training that was ended goes on where it was, and leaves a checkpoint that loads."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from demo.loss_curve import curve
from demo.optimizer import Muon
from engine import ModelConfig
from engine.model.weights import load_model

ROOT = Path(__file__).resolve().parents[2]


def train(out: Path, steps: int, *more: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "demo.train", "--out", str(out), "--steps", str(steps), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_goes_on_where_it_was_and_ends_with_a_checkpoint(tmp_path: Path):
    first = train(tmp_path, 3)
    both = train(tmp_path, 5)
    assert both[:3] == first
    assert [line["step"] for line in both] == [1, 2, 3, 4, 5]
    assert both[-1]["spent_s"] > first[-1]["spent_s"]
    losses = [line.get("loss", line.get("mtp_loss")) for line in both]
    assert all(loss is not None and loss > 0 for loss in losses)

    checkpoint = tmp_path / "checkpoint"
    config = ModelConfig.from_dir(checkpoint)
    loaded = load_model(checkpoint, config, "bfloat16")
    assert 10_000_000 < loaded.num_parameters < 12_000_000
    drawn = curve(tmp_path / "log.jsonl")
    assert drawn.startswith("<svg")
    assert drawn.count("<polyline") == 1

    further = train(tmp_path / "further", 2, "--after", str(tmp_path))
    assert [line["step"] for line in further] == [1, 2]
    assert further[0]["loss"] < first[0]["loss"]
    assert (tmp_path / "further/tokenizer.json").read_bytes() == (
        tmp_path / "tokenizer.json"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_training_leaves_no_process_behind(tmp_path: Path):
    command = [sys.executable, "-m", "demo.train", "--out", str(tmp_path), "--steps", "500"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        main = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    try:
        wait_until(lambda: (tmp_path / "log.jsonl").exists() and members(main.pid) >= 5, 120)
        main.kill()
        main.wait()
        wait_until(lambda: members(main.pid) == 0, 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)


def members(session: int) -> int:
    """How many processes there are of a session."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, theirs = stat.read_text().rpartition(")")[2].split()[:4]
            found += int(theirs) == session and state != "Z"
    return found


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_the_curve_of_trainings_that_went_on_from_one_another(tmp_path: Path):
    logs = [tmp_path / "a", tmp_path / "b"]
    for log in logs:
        lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3, "mtp_loss": 0.5}]
        log.write_text("\n".join(map(json.dumps, [*lines[:2], *lines[1:]])))
    drawn = curve(*logs)
    assert drawn.count("<polyline") == 4
    assert ">6</text>" in drawn, "the last step"


def test_muon_steps_along_the_orthogonalised_gradient():
    torch.manual_seed(0)
    plain = torch.nn.Parameter(torch.zeros(8, 16))
    stack = torch.nn.Parameter(torch.zeros(3, 8, 16))
    optimizer = Muon([plain, stack], lr=0.1, momentum=0.0)
    gradients = torch.randn(4, 8, 16) * torch.tensor([1e-4, 1.0, 1.0, 1e3])[:, None, None]
    plain.grad, stack.grad = gradients[0].clone(), gradients[1:].clone()
    optimizer.step()
    for step, gradient in zip((plain.data, *stack.data), gradients, strict=True):
        u, _, v = torch.linalg.svd(gradient, full_matrices=False)
        torch.testing.assert_close(step, -0.1 * u @ v, atol=0.04, rtol=0)
