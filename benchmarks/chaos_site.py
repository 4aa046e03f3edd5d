"""Where `chaos.py` lets runs happen: a cluster of its own, a small disk, a store behind a proxy."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from fault_proxy import FaultProxy

QUERIES, CANDIDATES = 64, 10
CPUS = 2
_NAP_SECONDS = 0.05
# A dead node is noticed after about five seconds; Ray's own settings give it half a minute.
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


def make_table() -> pa.Table:
    """Whole candidate lists of distinct texts; lists end inside files and row groups."""
    rows = [(q, c) for q in range(QUERIES) for c in range(CANDIDATES)]
    return pa.table(
        {
            "query_id": [f"q{q:04d}" for q, _ in rows],
            "query": [f"what does list {q} hold" for q, _ in rows],
            "doc_id": [f"d{q:04d}-{c:02d}" for q, c in rows],
            "document": [f"row {c} of list {q}" for q, c in rows],
        }
    )


class Site:
    """A cluster of two CPUs, an input, a small disk, and, if wanted, a store that can fail and a
    server that takes jobs.

    All of it is this process's own: children, folders, ports of loopback.
    """

    def __init__(self, seed: int, with_store: bool, with_jobs: bool) -> None:
        self._stack, self._seed = ExitStack(), seed
        self._with_store, self._with_jobs = with_store, with_jobs
        self.jobs = ""
        self.root = Path(tempfile.mkdtemp(prefix="rm-chaos-"))
        self.input = self.root / "input"
        self.disk: Path | None = None
        self.proxy: FaultProxy | None = None
        self.bucket: Any = None
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.cluster: Any = None

    def __enter__(self) -> Site:
        self._stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        self.input.mkdir()
        table = make_table()
        for number, first in enumerate(range(0, table.num_rows, 215)):
            part = table.slice(first, 215)
            pq.write_table(part, self.input / f"{number}.parquet", row_group_size=65)
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [here, os.environ.get("PYTHONPATH")])
        )
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Or whoever starts Ray on this machine meanwhile finds this cluster and joins it.
            "RAY_TMPDIR": str(self.root),
        }
        if self._with_store:
            self._start_store()
        self._mount_disk()
        self._stack.callback(self._stop_cluster)
        self._stack.callback(self._stop_drivers)
        self.start_cluster()

    def _start_store(self) -> None:
        port = _free_port()
        log = self._stack.enter_context((self.root / "store.log").open("wb"))
        store = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
        )
        self._stack.callback(store.wait)
        self._stack.callback(store.kill)
        self.proxy = self._stack.enter_context(FaultProxy(port, self._seed))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= {
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(self.root / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.root / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.bucket = fsspec.filesystem(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.bucket.mkdir("bucket")
                break
            except Exception:  # whatever a server that is not up yet leads to
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        self.bucket.put(f"{self.input}/", "bucket/input/", recursive=True)

    def _mount_disk(self) -> None:
        """A disk of two megabytes; left out where this process may not mount one."""
        place = self.root / "disk"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
        with suppress(OSError):
            if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
                self._stack.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
                self.disk = place

    def start_cluster(self) -> None:
        """A head node with two CPUs; ends the one before."""
        self._stop_cluster()
        arguments = {
            "num_cpus": CPUS,
            "include_dashboard": False,
            "object_store_memory": 150_000_000,
            "_system_config": _HEALTH,
        }
        if self._with_jobs:
            port = _free_port()
            arguments |= {
                "include_dashboard": True,
                "dashboard_port": port,
                # Its own, or another cluster of this machine has it, and no job starts.
                "dashboard_agent_listen_port": _free_port(),
            }
            self.jobs = f"http://127.0.0.1:{port}"
        self.cluster = Cluster(initialize_head=True, head_node_args=arguments)
        if self._with_jobs:
            self._wait_for_jobs()

    def _wait_for_jobs(self) -> None:
        deadline = time.monotonic() + 300
        while True:
            try:
                JobSubmissionClient(self.jobs).list_jobs()
                return
            except (ConnectionError, RuntimeError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _stop_cluster(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None

    def _stop_drivers(self) -> None:
        for driver in self.drivers:
            driver.kill()
            driver.wait()

    def add_node(self) -> Node:
        """A second node of two CPUs."""
        node: Node = self.cluster.add_node(num_cpus=CPUS, object_store_memory=100_000_000)
        return node

    def workers(self) -> dict[int, bytes]:
        """Ray's worker processes of this cluster, with what each is doing."""
        nodes = [self.cluster.head_node, *self.cluster.worker_nodes]
        raylets = {info.process.pid for n in nodes for info in n.all_processes.get("raylet", [])}
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError, IndexError):
                    stat = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
                    title = (entry / "cmdline").read_bytes()
                    # The raylet's agents are its children, too; without them it ends itself.
                    is_worker = b"ray::" in title and b"Agent" not in title
                    if int(stat[1]) in raylets and stat[0] not in "ZX" and is_worker:
                        found[int(entry.name)] = title
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send(pids: list[int], what: signal.Signals) -> None:
    """Send a signal to processes; those that have gone are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


class Case:
    """One output, started as often as it takes, and what was seen on the way."""

    def __init__(
        self, site: Site, name: str, number: int, output: str, source: str | None = None
    ) -> None:
        self.site, self.name, self.number, self.output = site, name, number, output
        self.source = source or str(site.input)
        self.folder = site.root / f"{name}.case"
        self.folder.mkdir()
        self.driver: subprocess.Popen[bytes] | None = None
        # Whether the command is submitted as a job; its driver is then `ray job submit`.
        self.is_job = False
        self.starts = self.faults = self.shards = 0
        self.places: list[str] = []
        self.recovery: list[float] = []
        self.codes: list[int] = []

    @property
    def is_remote(self) -> bool:
        """Whether its output is in the object store."""
        return self.output.startswith("s3://")

    def start(self, *more: str) -> None:
        """Start the command."""
        self.starts += 1
        script = str(Path(__file__).with_name("chaos_run.py"))
        command = [sys.executable, script, self.source, self.output, str(self.folder), *more]
        command += ["--address", self.site.cluster.address]
        if self.is_job:
            command = self._ray_job("submit", "--submission-id", self._job_id, "--", *command)
        with (self.folder / f"log-{self.starts}").open("wb") as log:
            self.driver = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.site.drivers.append(self.driver)

    def logs(self) -> str:
        """All that was printed."""
        return "".join(p.read_text() for p in sorted(self.folder.glob("log-*")))

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self.driver is not None and self.driver.poll() is None

    def end(self, seconds: float = 600) -> int:
        """Wait for the command; its exit code."""
        assert self.driver is not None, "started before"
        # Counted, not clocked: whoever measures on this machine may stop this process meanwhile.
        for _ in range(int(seconds / _NAP_SECONDS)):
            if not self.is_running:
                break
            time.sleep(_NAP_SECONDS)
        code = self.driver.wait(timeout=_NAP_SECONDS)
        if self.is_job:
            # `ray job submit` ends with 0 for a job that was stopped.
            info = JobSubmissionClient(self.site.jobs).get_job_info(self._job_id)
            stopped = info.status == JobStatus.STOPPED
            code = -signal.SIGTERM if stopped else code or info.driver_exit_code or 0
        self.codes.append(code)
        return code

    def stop_job(self) -> None:
        """`ray job stop`, which waits until the job has ended."""
        subprocess.run(self._ray_job("stop", self._job_id), check=True, capture_output=True)

    def _ray_job(self, command: str, *arguments: str) -> list[str]:
        ray = str(Path(sys.executable).with_name("ray"))
        return [ray, "job", command, "--address", self.site.jobs, *arguments]

    @property
    def _job_id(self) -> str:
        return f"{self.name}-{self.starts}"

    def kill(self) -> None:
        """SIGKILL to the driver."""
        assert self.driver is not None, "started before"
        self.driver.kill()
        self.codes.append(self.driver.wait())

    def wait(self, condition: Callable[[], bool], pause: float = 0.001) -> bool:
        """Wait until something is so, or the command has ended; whether it is so."""
        deadline = time.monotonic() + 400
        while not condition():
            if not self.is_running or time.monotonic() > deadline:
                return condition()
            time.sleep(pause)
        return True

    def names(self, folder: str = "") -> set[str]:
        """Names of the files in a folder of the output."""
        if self.is_remote:
            with suppress(FileNotFoundError):
                place = f"{self.output}/{folder}".rstrip("/")
                return {info.rpartition("/")[2] for info in self.site.bucket.ls(place, False)}
            return set()
        try:
            return set(os.listdir(Path(self.output, folder)))
        except FileNotFoundError:
            return set()

    def committed(self) -> int:
        """How many shards have a marker."""
        return sum(name.endswith(".json") for name in self.names("_rankmill/shards"))

    def unmarked(self) -> set[str]:
        """Shards whose part is there and whose marker is not."""
        markers = {name[:5] for name in self.names("_rankmill/shards")}
        parts = {name[5:10] for name in self.names() if name.startswith("part-")}
        return parts - markers

    def watch_recovery(self) -> None:
        """Measure the seconds from now to the next commit, or to the end."""
        started, before = time.monotonic(), self.committed()
        self.wait(lambda: self.committed() > before, 0.3 if self.is_remote else 0.01)
        self.recovery.append(time.monotonic() - started)

    def contents(self) -> dict[str, bytes]:
        """Every file of the output, by its name in it."""
        if self.is_remote:
            bare = self.output.removeprefix("s3://")
            return {
                path[len(bare) + 1 :]: self.site.bucket.cat_file(path)
                for path in self.site.bucket.find(bare)
            }
        root = Path(self.output)
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
