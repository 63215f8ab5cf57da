"""The deployment examples keep the rules they are there to show."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from server.arguments import ServeArguments, parse_arguments

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT, VOLUME_CLAIM, SERVICE = yaml.safe_load_all(
    (ROOT / "deploy/kubernetes.yaml").read_text("utf-8")
)
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text("utf-8"))


def serve_arguments(command: list[str]) -> ServeArguments:
    arguments = parse_arguments(command, {})
    assert isinstance(arguments, ServeArguments)
    return arguments


def test_the_grace_period_covers_the_drain():
    sleep = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep[0] == "sleep"
    drain_s = int(sleep[1]) + serve_arguments(CONTAINER["args"]).shutdown_timeout_s
    assert POD["terminationGracePeriodSeconds"] > drain_s


def test_the_probes_ask_the_right_questions():
    paths = {
        kind: CONTAINER[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/ready", "liveness": "/live", "readiness": "/ready"}
    startup, live, ready = (CONTAINER[f"{kind}Probe"] for kind in paths)
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 1800
    assert live["timeoutSeconds"] >= 5
    assert live["failureThreshold"] >= 3
    turned_s = ready["failureThreshold"] * ready["periodSeconds"]
    assert turned_s < live["failureThreshold"] * live["periodSeconds"]
    assert turned_s <= int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])


def test_the_pod_has_no_rights_it_does_not_need():
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {
        volume["name"] for volume in POD["volumes"]
    }


def test_compose_is_as_closed():
    service = COMPOSE["services"]["deltaserve"]
    arguments = serve_arguments(service["command"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert int(service["stop_grace_period"].removesuffix("s")) > arguments.shutdown_timeout_s
    assert "DELTASERVE_API_KEY" in service["environment"]


def test_the_image_runs_without_rights_and_checks_liveness():
    lines = (ROOT / "Dockerfile").read_text("utf-8")
    final = lines[lines.index(" AS runtime") :]
    assert re.search(r"^USER (?!0|root)\d+", final, re.M)
    assert re.search(r"HEALTHCHECK[^#]*/live", final)
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", lines, re.M))
    assert {"cpu", "cuda"} <= targets
    user = re.search(r"^USER (\d+)", final, re.M)
    assert user is not None
    assert int(user[1]) == POD["securityContext"]["runAsUser"]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_installs_what_the_project_asks_for_by_hash(target: str):
    text = (ROOT / f"deploy/requirements-{target}.txt").read_text("utf-8")
    hashes = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    entries = re.findall(rf"^(\S+)==(\S+) \\\n{hashes}", text, re.M)
    assert len(entries) == len(re.findall(r"^[a-z]", text, re.M))
    pinned = dict(entries)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        assert pinned[wanted.name] in wanted.specifier, line
    assert ("nvidia-nccl-cu13" in pinned) == (target == "cuda")
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    stage = dockerfile.split(f" AS {target}-build\n")[1].split("\nFROM ")[0]
    installs = re.findall(r"pip install (.*)", stage.replace("\\\n", ""))
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    assert f"--requirement requirements-{target}.txt" in installs[0]
