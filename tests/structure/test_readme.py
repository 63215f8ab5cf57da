"""The README against what it describes: flags, metrics and routes, none missing, none invented."""

import re
from pathlib import Path

import pytest

from server.arguments import parse_arguments
from server.metrics import Metrics
from server.openapi import openapi_document
from tests.fakes import FakeEngine

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    """The text from one heading to the next of its level."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert match is not None
    return match[1]


def flags_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        parse_arguments([command, "--help"], {})
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*[a-z]", capsys.readouterr().out)) - {"--help"}


def test_the_flags_table_is_the_flags(capsys: pytest.CaptureFixture[str]):
    rows = "\n".join(line for line in section("The command").splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(--?[a-z][a-z-]*)`", rows)) == flags_of("serve", capsys)


def test_flags_in_examples_exist(capsys: pytest.CaptureFixture[str]):
    known = flags_of("serve", capsys) | flags_of("bench", capsys) | flags_of("plan", capsys)
    examples = "".join(re.findall(r"```sh\n.*?```", section("The command"), re.S))
    used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", examples))
    assert used
    assert used <= known


def test_the_metrics_table_is_the_metrics():
    text = Metrics(FakeEngine(), model_name="m").render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    exposed = {
        (name if kind != "counter" or name.endswith("_total") else f"{name}_total", kind)
        for name, kind in kinds.items()
        if not name.endswith("_created")
    }
    documented = {
        (name, row.rsplit("|", 2)[1].strip())
        for row in section("Metrics").splitlines()
        for name in re.findall(r"`((?:vllm|deltaserve):\w+)", row)
    }
    assert documented == exposed


def test_the_routes_table_is_the_routes():
    rows = [
        line for line in section("The API").splitlines() if line.startswith(("| `POST", "| `GET"))
    ]
    documented = {path for row in rows for path in re.findall(r"(/[\w/.{}]+)`", row.split("|")[1])}
    served = set(openapi_document("0")["paths"])
    assert documented == served
