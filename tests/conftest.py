"""Shared by all tests: data, tiny models, one Ray cluster."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny_models
from rankmill import local_cluster
from rankmill.models import locate

# No test may reach for a hub: neither this process, which has read the variable by now, nor those
# that it starts.
huggingface_hub.constants.HF_HUB_OFFLINE = True
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Idle workers stay for the next run: most of a small run is waiting for processes to start.
os.environ.setdefault("RAY_num_workers_soft_limit", "6")
# Ray takes 127.0.0.1 for this machine's other address, unless it is told that there is no other.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# Ray's workers find what stands beside the tests: scorers of one's own.
_BESIDE = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _BESIDE))
# Converted models are kept for the session, by xdist's controller for all of its workers, and
# nothing of the user's is read or written.
if "_RANKMILL_TESTS_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="rankmill-cache-")
    os.environ["_RANKMILL_TESTS_CACHE"] = _CACHE.name
os.environ["XDG_CACHE_HOME"] = os.environ["_RANKMILL_TESTS_CACHE"]

# What tests share with the benchmarks: a store that fails.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

SHARED_DATA = Path(
    os.environ.get("RANKMILL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The test collections, which are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no test collections at {SHARED_DATA} (set RANKMILL_TEST_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Build a tiny model once a session: `tiny_model("bert")` is its folder."""
    root = tmp_path_factory.mktemp("models")
    built: dict[str, str] = {}

    def build(kind: str) -> str:
        if kind not in built:
            built[kind] = str(tiny_models.BUILDERS[kind](root / kind))
        return built[kind]

    return build


@pytest.fixture(scope="session")
def free_model(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model's folder for the scorer `own_scorers:Poisoned`, which costs nothing; no faults."""
    folder = tmp_path_factory.mktemp("free")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_model("bert")) / name, folder)
    (folder / "poison.json").write_text("{}")
    return str(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The cluster that all ordinary tests share; runs inside a test use it as it is."""
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader

    with local_cluster.on_loopback(ray_constants, AuthenticationTokenLoader.instance()):
        ray.init(
            address="local",  # not whatever cluster the machine has
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            logging_level="error",
            _system_config={"metrics_report_interval_ms": 2_000},
        )
    yield
    ray.shutdown()


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str | Path], None]]:
    """Put a folder into the hub's cache under a name, as if it had been fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    locate._snapshot.cache_clear()

    def put(name: str, folder: str | Path) -> None:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)

    yield put
    locate._snapshot.cache_clear()


def make_pairs(queries: int, candidates: int, words: int = 6) -> pa.Table:
    """A small candidate table: every query and document distinct, lengths mixed."""
    rows = [(q, c) for q in range(queries) for c in range(candidates)]
    return pa.table(
        {
            "query_id": [f"q{q:04d}" for q, _ in rows],
            "query": [f"what is shard {q}" for q, _ in rows],
            "doc_id": [f"d{q:04d}-{c:03d}" for q, c in rows],
            "document": [
                f"shard {c} of list {q} " + "reads whole candidate lists " * ((q + c) % words)
                for q, c in rows
            ],
            "bm25_rank": pa.array([c + 1 for _, c in rows], pa.int32()),
        }
    )


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., str]:
    """Write a table as one Parquet file below the test's folder."""

    def write(table: pa.Table, name: str = "input/candidates.parquet", **options: object) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return str(path)

    return write


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Training of tiny models loses time to more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
