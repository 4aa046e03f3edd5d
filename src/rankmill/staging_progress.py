"""Where a staging lies and how far it is: what `status` can say before a run has shards.

Beside its output, a run that stages has a folder of a name of its own. Whatever step is being done
is written into it, with the files that the step leaves one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rankmill.errors import ConfigError
from rankmill.storage import join
from rankmill.store import Store

STEP = "step.json"


@dataclass(frozen=True)
class StagingProgress:
    """A look at a staging. step: the folder that is being filled; done: of how many pieces."""

    url: str
    step: str
    done: int
    of: int


def parent_and_name(url: str) -> tuple[str, str]:
    """The folder of an output, and the output's name in it.

    Raises `ConfigError` where there is no place beside the output.
    """
    parent, _, name = url.rpartition("/")
    if not name or parent.endswith(":/"):
        raise ConfigError(
            f"The output {url} has nothing beside it, where candidates are sorted or joined first.",
            "Give a folder below it.",
        )
    return parent or "/", name


def staging_url(output: Store, digest: str) -> str:
    """The staging folder of an output, for what a SHA-256 in hex names."""
    parent, name = parent_and_name(output.url)
    return join(parent, f"_staging-{name}-{digest[:16]}")


def staging_folders(output: Store) -> list[str]:
    """The URLs of an output's staging folders, whatever they are for."""
    parent, name = parent_and_name(output.url)
    ours = re.compile(rf"_staging-{re.escape(name)}-[0-9a-f]{{16}}")
    beside = Store(parent, output.access)
    return [join(parent, folder) for folder in beside.folders() if ours.fullmatch(folder)]


def tell_step(staging: Store, names: Sequence[str]) -> None:
    """Say which files are being made, all in one folder of the staging. Raises `OSError`."""
    folder, _, last = names[-1].rpartition("/")
    _, dot, ending = last.rpartition(".")
    step = {"step": folder, "ending": dot + ending if dot else "", "of": len(names)}
    staging.write(STEP, json.dumps(step).encode())


def read_progress(output: Store) -> StagingProgress | None:
    """How far the staging beside an output is; None: there is none. Raises `OSError`."""
    try:
        folders = staging_folders(output)
    except ConfigError:
        return None
    for url in folders:
        staging = Store(url, output.access)
        content = staging.read(STEP)
        if content is not None:
            told = json.loads(content)
            names = staging.sizes(told["step"])
            done = sum(name.endswith(told["ending"]) for name in names)
            return StagingProgress(url, told["step"], done, told["of"])
    return None
