"""Run every command that pages show, the README first, in the order in which they show them.

Blocks marked `sh` and `python` are run from the checkout's folder in one empty home; a comment
`<!-- needs: s3 -->` or `<!-- needs: cluster -->` before a block starts what it needs on loopback;
`<!-- run elsewhere: why -->` says that something else runs it. Blocks of other kinds are output.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK = re.compile(
    r"(?:<!-- (?P<note>needs|run elsewhere): (?P<what>.*?) -->\n)?```(?P<kind>sh|python)\n"
    r"(?P<code>.*?)```",
    re.DOTALL,
)
BUCKET = "search"
KEYS = {
    "AWS_ACCESS_KEY_ID": "readme",
    "AWS_SECRET_ACCESS_KEY": "readme-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def start_s3(environment: dict[str, str]) -> Any:  # noqa: ANN401 - moto has no types
    """An S3 server on loopback with a bucket that holds the README's candidates."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment |= KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=BUCKET)
    client.upload_file("candidates.parquet", BUCKET, "candidates/part-0.parquet")
    return server


def start_cluster(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A Ray head with its job server on loopback; ends when its process does."""
    folder = tempfile.mkdtemp(prefix="rm-", dir="/tmp")
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += ["--dashboard-host=127.0.0.1", "--dashboard-port=8265", f"--temp-dir={folder}"]
    # Nothing is left to drain when it is told to end; it would wait for half a minute.
    own = environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    head = subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL)
    # A job, because the server lists jobs before it has an agent that could run one.
    probe = ["ray", "job", "submit", "--", "true"]
    for _ in range(60):
        time.sleep(1)
        if subprocess.run(probe, env=environment, capture_output=True).returncode == 0:
            return head
    head.terminate()
    raise SystemExit("the Ray head did not come up within a minute")


def main() -> None:
    """Run the blocks; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="+")
    text = "\n".join(page.read_text(encoding="utf-8") for page in parser.parse_args().pages)
    running: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        path = f"{Path('.venv/bin').absolute()}{os.pathsep}{os.environ['PATH']}"
        environment = dict(os.environ, HOME=home, PATH=path, HF_HUB_OFFLINE="1")
        try:
            for block in BLOCK.finditer(text):
                if block["note"] == "run elsewhere":
                    continue
                if block["note"] == "needs" and block["what"] not in running:
                    start = {"s3": start_s3, "cluster": start_cluster}[block["what"]]
                    running[block["what"]] = start(environment)
                print(f"\n--- {block['kind']}\n{block['code']}---", flush=True)
                interpreter = ["bash", "-euo", "pipefail", "-c"]
                if block["kind"] == "python":
                    interpreter = ["python", "-c"]
                started = time.perf_counter()
                subprocess.run([*interpreter, block["code"]], env=environment, check=True)
                print(f"--- {time.perf_counter() - started:.0f} s", flush=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"The block above failed with exit code {error.returncode}")
        finally:
            if "cluster" in running:
                running["cluster"].terminate()
                running["cluster"].wait(timeout=60)
            if "s3" in running:
                running["s3"].stop()


if __name__ == "__main__":
    main()
