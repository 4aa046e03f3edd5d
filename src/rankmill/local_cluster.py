"""What a cluster on this machine is given before it starts: loopback, a token, and silence.

Ray takes `127.0.0.1` for "find this machine's address" and then listens on all interfaces; on
macOS and Windows alone it stays on loopback. The switch for that is what is used here, for the
moment in which the cluster starts; its processes inherit the variable.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_TOKEN, _TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_made: set[str] = set()


class Constants(Protocol):
    """The module of Ray's that holds what the variable said when Ray was imported."""

    ENABLE_RAY_CLUSTER: bool


class TokenCache(Protocol):
    """Where Ray keeps the token that it has read."""

    def reset_cache(self) -> None:
        """Forget it."""


@contextmanager
def on_loopback(constants: Constants, cache: TokenCache) -> Iterator[None]:
    """Whatever cluster is started meanwhile is reached from this machine alone, with a token.

    Ray demands a token of whoever comes to a cluster that it starts by itself, unless
    RAY_AUTH_MODE says otherwise. Here it is this process's own and is never written to a file (Ray
    would keep one in the user's home, readable for all), unless the environment names one.
    """
    if not (os.environ.get(_TOKEN) or os.environ.get(_TOKEN_FILE)):
        os.environ[_TOKEN] = secrets.token_hex(32)
        _made.add(os.environ[_TOKEN])
        cache.reset_cache()
    clusters, variable = constants.ENABLE_RAY_CLUSTER, os.environ.get(_CLUSTERS)
    constants.ENABLE_RAY_CLUSTER = False
    os.environ[_CLUSTERS] = "0"
    try:
        with _silence():
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters
        if variable is None:
            del os.environ[_CLUSTERS]
        else:
            os.environ[_CLUSTERS] = variable


def forget_token(cache: TokenCache) -> None:
    """Before this process goes to another cluster: it is not shown the token of its own."""
    if os.environ.get(_TOKEN) in _made:
        del os.environ[_TOKEN]
        cache.reset_cache()


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on stderr unless it fails.

    Ray's C++ core prints harmless errors of Ray Data's own making (ray-project/ray#53727) to the
    driver's stderr, and a line about the variable that stops it. It is read once, here.
    """
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = "fatal"
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            del os.environ[_LOG_LEVEL]
