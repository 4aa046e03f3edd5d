"""Doors that stay shut: credentials are nowhere to be read, nothing is unpickled, files are as the
umask says, and a local cluster answers this machine and its own processes only.

Ray itself serialises what its processes hand each other (with cloudpickle). That is between the
processes of one run; nothing of it is read from data, models or settings.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from conftest import make_pairs
from rankmill import console, local_cluster, storage
from rankmill.envelope import Envelope
from rankmill.errors import InputError, ModelError, RankmillError
from rankmill.masking import MASK, mask

SOURCE = Path(__file__).parents[1] / "src" / "rankmill"
# Planted everywhere; made up, in the form of real ones.
PASSWORD = "hunter2-kept-secret"
ACCESS_KEY = "AKIAQYLPMN5HHHFPZAM2"
SECRET_KEY = "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"
SESSION = "FwoGZXIvYXdzEBYaDPlantedSessionToken"
HUB_TOKEN = "hf_PlantedTokenOfTheHubAbCdEfGhIjKl"
SIGNATURE = "3a9f0cPLANTEDsignature77"
SECRETS = (PASSWORD, ACCESS_KEY, SECRET_KEY, SESSION, HUB_TOKEN, SIGNATURE)


def leaked(text: str | bytes) -> list[str]:
    content = text.encode() if isinstance(text, str) else text
    return [secret for secret in SECRETS if secret.encode() in content]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials where a user's environment has them."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_SESSION_TOKEN": SESSION,
    "HF_TOKEN": HUB_TOKEN,
    "AZURE_STORAGE_ACCOUNT_KEY": SIGNATURE,
    "PGPASSWORD": PASSWORD,
}


# What a message must not say, whoever wrote it

MESSAGES = [
    f"Could not connect to the endpoint URL: http://user:{PASSWORD}@minio:9000/bucket",
    f"https://{ACCESS_KEY}:{SECRET_KEY}@bucket.s3.amazonaws.com/in cannot be read",
    f"s3://k:{PASSWORD}@bucket/a%20b and again s3://k:{PASSWORD}@bucket/c",
    f"https://hub/model?token={HUB_TOKEN} answered 401",
    f"GET https://b.s3/key?X-Amz-Credential={ACCESS_KEY}%2F2026&X-Amz-Signature={SIGNATURE}&a=b",
    f"https://account.blob.core.windows.net/c/a.parquet?sv=2026&sig={SIGNATURE}",
    f"headers: {{'Authorization': 'Bearer {HUB_TOKEN}'}}",
    f"Authorization: AWS4-HMAC-SHA256 {SIGNATURE}",
    f"{{'aws_secret_access_key': '{SECRET_KEY}', 'aws_session_token': '{SESSION}'}}",
    f"aws_access_key_id = {ACCESS_KEY}",
    f"The AWS Access Key Id {ACCESS_KEY} does not exist in our records",
    f"401 for token {HUB_TOKEN}",
    f"connection password={PASSWORD} refused",
    f"https://host/x?access_key={SECRET_KEY} refused",
    f"https://host/x?a=b&key={SIGNATURE} refused",
    f"https://host/x?auth={SIGNATURE} refused",
    f"s3://user%3A{PASSWORD}%40bucket/in cannot be read",
    f"user:{PASSWORD}@hub/x is no model",
    f"AccountName=a;AccountKey={SECRET_KEY};EndpointSuffix=core.windows.net",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_credentials_are_taken_out_of_a_message(message):
    assert leaked(message)
    assert not leaked(mask(message))
    assert MASK in mask(message)


def test_what_the_environment_keeps_secret_is_taken_out_wherever_it_stands(planted):
    for secret in SECRETS:
        assert mask(f"the server said {secret}, and no") == f"the server said {MASK}, and no"


@pytest.mark.parametrize(
    "message",
    [
        "s3://bucket/candidates/part-0.parquet, row group 3, cannot be decoded: column query_id.",
        "http://127.0.0.1:9000/bucket/user@example.com cannot be read",
        "abfs://container@account.dfs.core.windows.net/in holds nothing",
        "s3://bucket/day=?/key=*/part.parquet holds nothing at 12:30:45, ask admin@example.com",
        "max_query_tokens (600) must be below max_length (512)",
        "The tokenizer: 3 tokens, secrets: none\n\tsecond line",
        "The column 日本語 (query) is missing in /data/über uns/a.parquet",
    ],
)
def test_other_messages_stay_as_they_are(message):
    assert mask(message) == message


@pytest.mark.parametrize("where", [1_940, 1_960, 1_970])
def test_no_half_of_a_credential_stays_where_a_long_message_is_cut(where):
    secret = f" s3://{'k' * 30}:{'p' * 40}@host/ "
    words = "b " * 40_000
    for text in (words[:where] + secret + words, words + secret + words[:where]):
        shown = RankmillError(text).message
        assert "ppp" not in shown
        assert len(shown) < 4_100


def test_control_characters_are_written_out():
    assert mask("a\x1b[2J\rb\x9b\udcff") == r"a\x1b[2J\rb\x9b\udcff"


def test_errors_notes_logs_and_tracebacks_are_masked(planted, capsys, caplog):
    said = f"http://u:{PASSWORD}@host refused {SECRET_KEY}"
    error = InputError(said, said)
    assert not leaked(f"{error}{error.args}{error!r}")
    assert not leaked(str(Envelope(1).failed(said).error))
    with pytest.raises(InputError) as caught, storage.reaching("s3://bucket/in"):
        raise OSError(said)
    assert not leaked(str(caught.value))

    logging.getLogger("rankmill").warning("x: %s", OSError(said))
    assert MASK in caplog.text
    assert not leaked(caplog.text)
    try:
        raise OSError(said)
    except OSError as raised:
        console.show_traceback(type(raised), raised, raised.__traceback__)
    shown = capsys.readouterr().err
    assert "OSError" in shown
    assert not leaked(shown)


# What a user may type

PLACES = [
    *(
        (f"--{flag}", url)
        for flag in ("input", "output", "model")
        for url in (
            f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/in",
            f"https://host/a.parquet?X-Amz-Credential={ACCESS_KEY}&X-Amz-Signature={SIGNATURE}",
            f"abfs://c@a.dfs.core.windows.net/in?sig={SIGNATURE}",
            f"https://host/x?access_key={SECRET_KEY}",
            f"https://host/x?key={SIGNATURE}",
            f"https://host/x?auth={SIGNATURE}",
            f"user:{PASSWORD}@hub/x",
            f"s3://user%3A{PASSWORD}%40bucket/in",
        )
    ),
    ("--set", f"input.path=[good, s3://k:{PASSWORD}@bucket/in]"),
    ("--set", f"compute.address=ray://user:{PASSWORD}@head:10001"),
    ("--set", f"reuse=[s3://k:{PASSWORD}@bucket/old]"),
    ("--set", f"storage.secret={SECRET_KEY}"),
    ("--set", f"storage={{key: {ACCESS_KEY}, secret: {SECRET_KEY}}}"),
    ("--set", f"storage.profile=[{SECRET_KEY}]"),
    ("--set", f"input.storage_options={{token: {SESSION}}}"),
    ("--set", f"model.token={HUB_TOKEN}"),
    ("--set", f"model.max_length={HUB_TOKEN}"),
    ("--set", SECRET_KEY),
    (f"--aws-secret={SECRET_KEY}",),
    (f"s3://k:{PASSWORD}@bucket/run.yaml",),
    ("run.yaml", f"https://u:{PASSWORD}@host/more"),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[-1].split("=")[0][:20])
@pytest.mark.parametrize("debug", [(), ("--debug",)], ids=["", "debug"])
def test_credentials_among_the_arguments_are_refused_and_never_shown(place, debug, command):
    code, shown = command("plan", "--input", "a", "--output", "b", *place, *debug)
    assert code == 2, shown
    assert not leaked(shown)


@pytest.mark.parametrize(
    "settings",
    [
        f"input: {{path: 's3://k:{PASSWORD}@b/in'}}\noutput: {{path: o}}\nmodel: {{name: demo}}",
        f"input: {{path: i}}\noutput: {{path: 'https://h/o?sig={SIGNATURE}'}}\nmodel: {{name: m}}",
        f"input: {{path: i, storage_options: {{secret: {SECRET_KEY}}}}}",
        f"input: {SECRET_KEY}",
        f"aws_secret_access_key = {SECRET_KEY}\n",
        f"{{{SECRET_KEY}",
        f"!!{HUB_TOKEN} x",
        f"a: *{HUB_TOKEN}",
    ],
)
def test_credentials_in_a_configuration_are_refused_and_never_shown(settings, command, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(settings)
    code, shown = command("plan", path)
    assert code == 2, shown
    assert not leaked(shown)


SETTINGS = {
    "model.revision": HUB_TOKEN,
    "model.instruction": f"Judge with {HUB_TOKEN}",
    "input.columns.query": f"password={PASSWORD}",
    "output.column_prefix": ACCESS_KEY,
    "storage.region": SESSION,
    "compute.labels.zone": PASSWORD,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_run_json_would_keep_holds_no_credential(name, planted, command):
    value = SETTINGS[name]
    code, shown = command(
        *("plan", "--input", "in.parquet", "--output", "out", "--model", "demo"),
        *("--set", f"{name}={value}"),
    )
    assert code == 2, shown
    assert f"{name} holds a credential" in " ".join(shown.split())
    assert not leaked(shown)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["", "json"])
def test_a_plan_shows_its_settings_masked(command, tiny_model, tmp_path, flags):
    """A sentence may speak of a password without being one; what follows is not shown."""
    pq.write_table(make_pairs(2, 2), tmp_path / "in.parquet")
    code, shown = command(
        *("plan", "--input", tmp_path / "in.parquet", "--output", tmp_path / "out"),
        *("--model", tiny_model("qwen3"), "--set", "model.prompt=qwen3-reranker"),
        *("--set", f"model.instruction='Mails that ask for a password: {PASSWORD}'", *flags),
    )
    assert code == 0, shown
    assert f"ask for a password: {MASK}" in shown
    assert not leaked(shown)


def test_an_endpoint_with_credentials_is_never_shown(command, planted, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{PASSWORD}@127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage._filesystem.cache_clear()
    try:
        for debug in ((), ("--debug",)):
            code, shown = command(
                *("plan", "--input", "s3://bucket/in", "--output", "s3://bucket/out"),
                *("--model", "demo", *debug),
            )
            assert code == 2
            assert "s3://bucket/in cannot be read" in shown
            assert not leaked(shown)
    finally:
        storage._filesystem.cache_clear()


def test_a_model_error_never_shows_a_token(planted):
    error = ModelError(f"401 for https://hub/api?token={HUB_TOKEN} (Authorization: {HUB_TOKEN})")
    assert not leaked(str(error))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """The command line in this process: its exit code, and all that it printed."""
    from rankmill import cli

    log, hook = logging.getLogger("rankmill"), sys.excepthook
    before = log.handlers, log.propagate, log.level

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rankmill", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, "".join(capfd.readouterr())

    yield run
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])
    sys.excepthook = hook


# A local cluster's token


class Ray:
    """What `local_cluster` is handed of Ray."""

    def __init__(self) -> None:
        self.ENABLE_RAY_CLUSTER = True
        self.resets = 0

    def reset_cache(self) -> None:
        self.resets += 1


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_token_of_this_process_is_not_shown_to_another_cluster(no_token):
    ray = Ray()
    with local_cluster.on_loopback(ray, ray):
        assert not ray.ENABLE_RAY_CLUSTER
    assert ray.ENABLE_RAY_CLUSTER
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    local_cluster.forget_token(ray)
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert ray.resets == 2


def test_a_token_of_the_users_is_kept(no_token, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", HUB_TOKEN)
    ray = Ray()
    with local_cluster.on_loopback(ray, ray):
        pass
    local_cluster.forget_token(ray)
    assert os.environ["RAY_AUTH_TOKEN"] == HUB_TOKEN
    assert ray.resets == 0


# A whole run on a cluster of its own

PROGRAM = """
import json, os, sys
os.umask(0o077)
import grpc, psutil, ray
import rankmill
from rankmill import cluster

config = rankmill.load_config(sys.argv[1])
with cluster.connected(config.compute):
    rankmill.rerank(config)
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    listening = {
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    address = ray.get_runtime_context().gcs_address
    token = os.environ["RAY_AUTH_TOKEN"]
    ask = grpc.insecure_channel(address).unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
    answers = {}
    for name, sent in (("none", None), ("wrong", "0" * 64), ("own", token)):
        header = [] if sent is None else [("authorization", f"Bearer {sent}")]
        try:
            answers[name] = "OK" if ask(b"", metadata=header, timeout=20) else "empty"
        except grpc.RpcError as error:
            answers[name] = error.code().name
    found = {"listening": sorted(listening), "answers": answers, "token": token}
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
"""


class OwnCluster(NamedTuple):
    """A finished run: its output, its folders, what it printed, and what was seen of its cluster.

    sessions: Ray's own files, its logs among them.
    """

    output: Path
    home: Path
    sessions: Path
    printed: str
    listening: list[tuple[str, str]]
    answers: dict[str, str]
    token: str


@pytest.fixture(scope="module")
def own_cluster(
    tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnCluster]:
    folder = tmp_path_factory.mktemp("own")
    pq.write_table(make_pairs(3, 4), folder / "a.parquet")
    home, output = folder / "home", folder / "out"
    home.mkdir()
    settings = {
        "input": {"path": str(folder / "a.parquet")},
        "output": {"path": str(output)},
        "model": {"name": tiny_model("bert"), "backend": "torch"},
        "compute": {"workers": 1},
    }
    (folder / "run.yaml").write_text(f"# {PASSWORD}\n{json.dumps(settings)}")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    with tempfile.TemporaryDirectory(prefix="rm-", dir="/tmp") as sessions:  # sockets: short
        # Ray would join the cluster that this file names, and anybody may write to /tmp.
        Path(sessions, "ray").mkdir()
        Path(sessions, "ray", "ray_current_cluster").write_text("127.0.0.1:1")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, folder / "run.yaml", folder / "seen.json"],
            env=kept | ENVIRONMENT | {"HOME": str(home), "RAY_TMPDIR": sessions},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout
        seen = json.loads((folder / "seen.json").read_text())
        listening = [tuple(one) for one in seen["listening"]]
        yield OwnCluster(
            *(output, home, Path(sessions), done.stdout),
            *(listening, seen["answers"], seen["token"]),
        )


def test_a_local_cluster_listens_on_loopback_alone(own_cluster):
    names = {name for name, _ in own_cluster.listening}
    assert {"gcs_server", "raylet"} <= names
    elsewhere = [
        (name, ip)
        for name, ip in own_cluster.listening
        if ip.removeprefix("::ffff:") != "127.0.0.1"
    ]
    assert elsewhere == []


def test_a_local_cluster_answers_only_who_has_its_token(own_cluster):
    assert own_cluster.answers == {
        "none": "UNAUTHENTICATED",
        "wrong": "UNAUTHENTICATED",
        "own": "OK",
    }


def all_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def test_the_token_is_in_no_file(own_cluster):
    for folder in (own_cluster.home, own_cluster.sessions, own_cluster.output):
        for path in all_files(folder):
            assert own_cluster.token.encode() not in path.read_bytes(), path
    assert not (own_cluster.home / ".ray" / "auth_token").exists()


def test_no_credential_is_printed_stored_or_logged_by_a_run(own_cluster):
    assert not leaked(own_cluster.printed)
    output = list(all_files(own_cluster.output))
    names = {path.name for path in output}
    assert {"part-00000.parquet", "run.json", "manifest.json", "00000.json"} <= names
    logs = list(all_files(own_cluster.sessions))
    assert any(path.suffix == ".log" for path in logs)
    for path in [*output, *logs, *all_files(own_cluster.home)]:
        assert not leaked(path.read_bytes()), path
    assert not leaked(str(pq.read_schema(own_cluster.output / "part-00000.parquet").metadata))


def test_files_and_folders_are_made_with_the_users_umask(own_cluster):
    for path in [own_cluster.output, *own_cluster.output.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


# Nothing is unpickled

FORBIDDEN_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# `load` of torch and numpy unpickle, `yaml.load` builds whatever its loader allows.
FORBIDDEN_CALLS = {
    *("torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system", "eval", "exec"),
}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_unpickles_or_runs_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            assert called(node) not in FORBIDDEN_CALLS
            if called(node) == "yaml.load":
                assert path.stem == "settings_yaml", "its loader derives from SafeLoader"
            for keyword in node.keywords:
                switch = keyword.arg in ("allow_pickle", "trust_remote_code", "shell")
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert not switch or off
