"""The manifests for KubeRay are what its published schemas take, and start what is there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.main import get_command

from rankmill import cli
from rankmill.config import load_config

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "configs" / "kuberay"
KINDS = {"rayjob.yaml": "ray.io_rayjobs.yaml", "raycronjob.yaml": "ray.io_raycronjobs.yaml"}


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((MANIFESTS / name).read_text(encoding="utf-8"))


def strict(schema: Any) -> Any:
    """The same schema, in which a key that it does not know is an error, as for kubectl."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_fits_the_published_schema(name, shared_data):
    path = shared_data / "kuberay" / KINDS[name]
    if not path.is_file():
        pytest.skip(f"no schema at {path}")
    definition = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    found = manifest(name)
    group, version = found["apiVersion"].split("/")
    assert (group, found["kind"]) == (
        definition["spec"]["group"],
        definition["spec"]["names"]["kind"],
    )
    (schema,) = (
        one["schema"]["openAPIV3Schema"]
        for one in definition["spec"]["versions"]
        if one["name"] == version and one["served"]
    )
    errors = Draft202012Validator(strict(schema)).iter_errors(found)
    assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []


def test_every_night_is_the_job_that_is_started_by_hand():
    assert manifest("raycronjob.yaml")["spec"]["jobTemplate"] == manifest("rayjob.yaml")["spec"]


def test_the_job_that_is_started_takes_its_arguments():
    python, job, log_json, *arguments = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    # The last goes with every command, and is taken out before.
    assert (python, job, log_json) == ("python", "/app/jobs/nightly.py", "--log-json")
    command = get_command(cli.app).commands["nightly"]
    with command.make_context("nightly", arguments) as context:
        assert context.params["date"] == "today"


def test_there_are_gpu_workers_and_cpu_workers_that_are_always_there():
    cluster = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]
    gpu, cpu = cluster["workerGroupSpecs"]
    requests = [
        group["template"]["spec"]["containers"][0]["resources"]["requests"] for group in (gpu, cpu)
    ]
    assert ["nvidia.com/gpu" in request for request in requests] == [True, False]
    assert (gpu["minReplicas"], cpu["minReplicas"] > 0) == (0, True)
    # What the settings ask for is what can be started.
    compute = load_config(ROOT / "configs/nightly.yaml", date="2026-11-21").compute
    assert compute.workers == gpu["maxReplicas"]
    assert compute.wait_seconds > 0
    assert compute.device == "auto"


def test_the_versions_are_those_of_the_constraints():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    version = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version}\n" in pinned
    assert f"rayproject/ray:{version}-" in (MANIFESTS / "Dockerfile").read_text(encoding="utf-8")
