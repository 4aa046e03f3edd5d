"""`ray job submit` to a real cluster of two nodes: exit codes, and nights that are stopped."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobSubmissionClient
from transformers import AutoTokenizer

from conftest import make_pairs
from rankmill.status import read_status

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
    """A head with its job server on loopback, and another node: the server's address.

    All processes of a node are of one session, so that they can be told from any other cluster's.
    """
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to end the cluster's processes and no others")
    port, dashboard, client = free_ports(3)
    # Sockets lie below it, and their paths may have some hundred characters at most.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    nodes = [
        start_node(
            folder / "head.log",
            *("--head", f"--port={port}", f"--temp-dir={folder}/h"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            f"--ray-client-server-port={client}",
        )
    ]
    try:
        address = f"http://127.0.0.1:{dashboard}"
        log = folder / "head.log"
        wait_for(lambda: JobSubmissionClient(address).list_jobs() is not None, nodes[0], log)
        log = folder / "other.log"
        # Of its own, or one node would clear away the packages of the other's jobs.
        nodes.append(start_node(log, f"--address=127.0.0.1:{port}", f"--temp-dir={folder}/o"))
        wait_for(lambda: nodes_alive(address) == 2, nodes[1], log)
        yield address
    finally:
        for node in nodes:
            end_session(node.pid)
            node.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def start_node(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A node of one CPU that lives as long as the process."""
    agent, agent_grpc = free_ports(2)
    with log.open("wb") as sink:
        return subprocess.Popen(
            [
                *(RAY, "start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"),
                *("--object-store-memory=100000000", f"--dashboard-agent-grpc-port={agent_grpc}"),
                *(f"--dashboard-agent-listen-port={agent}", *arguments),
            ],
            env=environment(),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )


def nodes_alive(address: str) -> int:
    with urllib.request.urlopen(f"{address}/nodes?view=summary", timeout=10) as answer:
        nodes = json.load(answer)["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def wait_for(found: Callable[[], bool], node: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        with suppress(ConnectionError, RuntimeError, OSError):
            if found():
                return
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


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
def project(tmp_path: Path) -> Path:
    """What a team submits: the jobs, and a configuration that a test writes."""
    shutil.copytree(JOBS, tmp_path / "project/jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "project"


@pytest.fixture
def submit(cluster: str, project: Path) -> Callable[..., tuple[int, int | None, str]]:
    """Submit the job with a configuration: exit codes of the command and the driver, the log."""

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


# Nights

WORD = "shear"
SHARDS = 6
# The plan is made in the driver and nowhere else.
SMALL_SHARDS = (
    "import runpy, sys; from rankmill import plan; plan.SHARD_PAIRS = 10; "
    "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def night(tiny_model: Callable[[str], str], project: Path, tmp_path: Path) -> Path:
    """The input of a night and a model that hangs on a word while the file `switch` is there."""
    table = make_pairs(SHARDS, 10)
    documents = table["document"].to_pylist()
    documents[35] = WORD
    place = table.column_names.index("document")
    (tmp_path / "in/2026-11-21").mkdir(parents=True)
    table = table.set_column(place, "document", pa.array(documents))
    pq.write_table(table, tmp_path / "in/2026-11-21/candidates.parquet")
    (tmp_path / "in/2026-11-21/_SUCCESS").touch()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))
    tokenizer.save_pretrained(tmp_path / "model")
    (token,) = tokenizer.encode(WORD, add_special_tokens=False)
    poison = {"switch": str(tmp_path / "switch"), str(token): "hang"}
    (tmp_path / "model/poison.json").write_text(json.dumps(poison))
    config = {
        "input": {"path": f"{tmp_path}/in/{{date}}"},
        "output": {"path": f"{tmp_path}/out/{{date}}"},
        "model": {"name": str(tmp_path / "model"), "scorer": "own_scorers:Poisoned"},
        "compute": {"workers": 2},
    }
    (project / "nightly.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def start(cluster: str, project: Path, night: Path) -> Callable[[], str]:
    """Submit the night's run: the submission's id."""
    arguments = [
        *("jobs/nightly.py", "--date", "2026-11-21", "--config", "nightly.yaml", "--wait", "30"),
        *("--summary", f"{night}/{{date}}.json"),
    ]
    command = shlex.join([sys.executable, "-c", SMALL_SHARDS, *arguments])
    client = JobSubmissionClient(cluster)
    return lambda: client.submit_job(entrypoint=command, runtime_env={"working_dir": str(project)})


def parts(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("part-*.parquet")}


def test_a_night_that_was_stopped_in_the_middle_is_finished_by_the_same_submission(
    cluster, night, start
):
    client = JobSubmissionClient(cluster)
    output, summary = night / "out/2026-11-21", night / "2026-11-21.json"

    def wait(job: str, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not until():
            assert time.monotonic() < deadline, client.get_job_logs(job)
            time.sleep(0.2)

    def has_ended(job: str) -> bool:
        return client.get_job_status(job).is_terminal()

    (night / "switch").touch()
    first = start()
    wait(first, lambda: len(list(output.glob("_rankmill/shards/*.json"))) >= 2)
    client.stop_job(first)
    wait(first, lambda: has_ended(first))
    before = parts(output)
    assert 2 <= len(before) < SHARDS
    assert not (output / "_SUCCESS").exists()
    assert json.loads(summary.read_text())["state"] in ("running", "stopped")

    (night / "switch").unlink()
    second = start()
    wait(second, lambda: has_ended(second))
    log = client.get_job_logs(second)
    assert client.get_job_info(second).driver_exit_code == 0, log
    assert (output / "_SUCCESS").exists()
    assert before.items() <= parts(output).items()
    assert read_status(str(output), verify=True).damaged == ()
    rows = pq.read_table(output).select(["query_id", "doc_id"]).to_pylist()
    asked = pq.read_table(night / "in/2026-11-21").select(["query_id", "doc_id"]).to_pylist()
    assert sorted(map(str, rows)) == sorted(map(str, asked))
    found = json.loads(summary.read_text())
    assert (found["state"], found["exit_code"], found["reason"]) == ("complete", 0, None)
    assert found["run"] == json.loads((output / "_rankmill/run.json").read_text())["fingerprint"]
    assert found["shards_committed"] == found["shards"] == SHARDS
    assert found["counters"]["rows_out"] == 10 * SHARDS
    assert found == json.loads(log[log.rindex("\n{") :])
