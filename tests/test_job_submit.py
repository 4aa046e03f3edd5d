"""`ray job submit` to a real cluster: the driver's exit code is the run's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from conftest import make_pairs

JOBS = Path(__file__).parents[1] / "jobs"
RAY = str(Path(sys.executable).with_name("ray"))


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A cluster with tokens would write one into the user's home.
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head node with its job server on loopback: the server's address.

    All its processes are of one session, so that they can be told from any other cluster's.
    """
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to end the cluster's processes and no others")
    port, dashboard, client, agent, agent_grpc = free_ports(5)
    # Sockets lie below it, and their paths may have some hundred characters at most.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    log = folder / "head.log"
    with log.open("wb") as sink:
        head = subprocess.Popen(
            [
                *(RAY, "start"),
                *("--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"),
                *("--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--ray-client-server-port={client}", f"--temp-dir={folder}"),
                *(f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"),
                f"--dashboard-agent-grpc-port={agent_grpc}",
            ],
            env=environment(),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 120
        while True:
            try:
                JobSubmissionClient(address).list_jobs()
                break
            except (ConnectionError, RuntimeError):
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        end_session(head.pid)
        head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def end_session(session: int) -> None:
    """Kill the processes that one command started: only they are of its session."""
    for _ in range(2):  # what was being started at the first look is there at the second
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    stat = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
                    if int(stat[3]) == session:
                        os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.5)


@pytest.fixture
def submit(cluster: str, tmp_path: Path) -> Callable[..., tuple[int, int | None, str]]:
    """Submit the job with a configuration: exit codes of the command and the driver, the log."""
    project = tmp_path / "project"
    shutil.copytree(JOBS, project / "jobs", ignore=shutil.ignore_patterns("__pycache__"))

    def run(**config: object) -> tuple[int, int | None, str]:
        (project / "config.yaml").write_text(yaml.safe_dump(config))
        name = f"rerank-{time.monotonic_ns()}"
        done = subprocess.run(
            [
                *(RAY, "job"),
                *("submit", "--address", cluster, "--submission-id", name, "--working-dir", "."),
                *("--", sys.executable, "jobs/rerank.py", "config.yaml", "--json"),
            ],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )
        client = JobSubmissionClient(cluster)
        return (
            done.returncode,
            client.get_job_info(name).driver_exit_code,
            client.get_job_logs(name),
        )

    return run


def test_a_submitted_run_completes(submit, tiny_model, tmp_path):
    pq.write_table(make_pairs(10, 4), tmp_path / "candidates.parquet")
    config = {
        "input": {"path": str(tmp_path / "candidates.parquet")},
        "output": {"path": str(tmp_path / "output"), "top_k": 2},
        "model": {"name": tiny_model("bert")},
    }
    code, driver, log = submit(**config)
    assert (code, driver) == (0, 0), log
    assert pq.read_table(tmp_path / "output").num_rows == 20
    assert (tmp_path / "output/_SUCCESS").exists()


def test_a_broken_configuration_ends_the_driver_with_2(submit, tmp_path):
    code, driver, log = submit(input={"path": str(tmp_path)}, outptu={"path": "x"})
    assert (code, driver) == (1, 2), log
    assert "Did you mean output?" in log
    assert "Traceback" not in log


def test_relative_data_paths_are_refused(submit, tiny_model, tmp_path):
    code, driver, log = submit(
        input={"path": str(tmp_path)},
        output={"path": "here"},
        model={"name": tiny_model("bert")},
    )
    assert (code, driver) == (1, 2), log
    assert "The path here is relative" in " ".join(log.split())
    assert "absolute path" in log
