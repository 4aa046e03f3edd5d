"""What run.json and the manifest hold for whoever reads them later; more may stand in them.

Both may have been written by another version, edited, or damaged. So what is used of them is
checked where they are read, once, and not wherever it is used.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt
from pydantic_core import from_json

from rankmill.profile import Profile
from rankmill.results import Results


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Model(_Part):
    name: str
    digest: str


class _Columns(_Part):
    columns: dict[str, Any]


class _Written(_Part):
    column_prefix: str


class _Compute(_Part):
    gpus_per_worker: FiniteFloat


class _Config(_Part):
    input: _Columns
    output: _Written
    compute: _Compute
    report: dict[str, Any] = {}
    reuse: list[str] = []


class _Plan(_Part):
    shards: NonNegativeInt
    pairs: NonNegativeInt
    digest: str
    tokens_a_pair: list[FiniteFloat] = []


class _Identity(_Part):
    settings: dict[str, Any]
    reuse: dict[str, str] = {}


class _Run(_Part):
    fingerprint: str
    identity: _Identity
    config: _Config
    plan: _Plan
    versions: dict[str, str]
    model: _Model
    profile: Profile
    models: dict[str, _Model] = {}
    profiles: dict[str, Profile] = {}
    scoring: list[dict[str, Any]] = []


class _Workers(_Part):
    workers: NonNegativeInt


class _Computed(_Part):
    backend: str
    precision: str
    device: str
    threads: NonNegativeInt


class _Share(_Part):
    model: _Model
    pairs: NonNegativeInt
    reused: NonNegativeInt


class _Gate(_Part):
    name: str
    limit: float
    found: float | None
    passed: bool


class _Manifest(_Part):
    files: list[str]
    model: _Model
    profile: _Computed
    workers: _Workers
    max_length: NonNegativeInt
    shards_resumed: NonNegativeInt
    seconds: FiniteFloat
    pairs_per_second: FiniteFloat
    queries: NonNegativeInt
    rows_in: NonNegativeInt
    rows_out: NonNegativeInt
    rows_below_cut: NonNegativeInt
    rows_quarantined: NonNegativeInt
    pairs_scored: NonNegativeInt
    pairs_reused: NonNegativeInt
    pairs_truncated: NonNegativeInt
    quarantine: dict[str, NonNegativeInt]
    gates: list[_Gate] = []
    models: dict[str, _Share] = {}


def read_run(content: bytes) -> dict[str, Any]:
    """A stored run.json. Raises `ValueError`, `KeyError` or `TypeError` for one that is damaged."""
    values: dict[str, Any] = from_json(content)
    found = _Run.model_validate_json(content)
    labels = Results.of_stored(values["config"]).labels
    wanted = {*labels} if len(labels) > 1 else set()
    if not {*found.models} == {*found.profiles} == wanted:
        raise ValueError("models and profiles are not those of the configuration")
    return values


def read_manifest(content: bytes) -> dict[str, Any]:
    """A stored manifest. Raises `ValueError` for one that is damaged."""
    values: dict[str, Any] = from_json(content)
    _Manifest.model_validate_json(content)
    return values
