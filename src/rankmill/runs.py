"""What names a run, and the record of it in `_rankmill/run.json`.

Two starts are the same run when input, model, settings and profile are the same; then the second
resumes the first. Anything else under the same output is refused, with the difference shown.
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rankmill import records
from rankmill.config import CONTRACT_VERSION, ModelConfig, RunConfig
from rankmill.errors import OutputError
from rankmill.markers import PRIVATE
from rankmill.models import Description
from rankmill.plan import Plan
from rankmill.profile import Profile
from rankmill.settings import Setting
from rankmill.source import Source
from rankmill.store import Store

RUN = f"{PRIVATE}/run.json"
MANIFEST = f"{PRIVATE}/manifest.json"
REPORT = f"{PRIVATE}/report.html"
SUCCESS = "_SUCCESS"
# What names an export, as run.json names a run.
EXPORT = f"{PRIVATE}/export.json"
_LIBRARIES = (
    "rankmill",
    "ray",
    "torch",
    "transformers",
    "openvino",
    "tokenizers",
    "pyarrow",
    "numpy",
)


@dataclass(frozen=True)
class Run:
    """One run, resolved.

    identity: the values that name it; recorded: what is worth knowing but does not (versions,
    the whole configuration, the plan's size).
    """

    identity: dict[str, Any]
    recorded: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the identity."""
        canonical = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """As stored in run.json."""
        stored = {
            "contract_version": CONTRACT_VERSION,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            **self.recorded,
        }
        return json.dumps(stored, indent=1, ensure_ascii=False).encode()


def scoring(asked: ModelConfig, digest: str, profile: Profile) -> dict[str, Any]:
    """All that a pair's score depends on beside its texts, as plain JSON values.

    Two runs that agree in it give a pair the same score but for what its batch does to it: in
    bf16 about 2e-3, in fp32 1e-6 (`benchmarks/batch_effect.py`), which is as exact as either of
    them is. So the size of batches and the number of threads are not in it; the backend and the
    instruction set are, because they round each operation in a way of their own. A model's place
    among several is not in it either, nor how many pairs it hands on.
    """
    found = profile.to_json()
    kept = ("backend", "precision", "device", "instructions", "scoring_version")
    return {
        "model": digest,
        "settings": asked.scoring_settings(),
        "profile": {name: found[name] for name in kept},
    }


def identity_without_profile(
    config: RunConfig,
    source: Source,
    models: Sequence[Description],
    beside: Mapping[str, Setting],
) -> dict[str, Any]:
    """Everything that names a run but the profiles, as plain JSON values.

    beside: what only some runs have. `reuse`: outputs whose scores are taken over, each with a
    digest of what it held; `calibration`: SHA-256 of the file that `rank.calibration` names.
    """
    asked = list(config.scorers.values())
    return {
        **beside,
        "files": {file.url: f"{file.size}/{file.version}" for file in source.files},
        # The files' order makes the shards; a mapping does not keep it.
        "order": hashlib.sha256("\n".join(file.url for file in source.files).encode()).hexdigest(),
        **{
            table.name: {file.url: f"{file.size}/{file.version}" for file in table.files}
            for table in source.texts
        },
        "model": _by_model(config, [model.digest for model in models]),
        "settings": config.result_settings(),
        "asked": {
            "backend": _by_model(config, [one.backend for one in asked]),
            "precision": _by_model(config, [one.precision for one in asked]),
            "device": config.compute.device,
            "cpus_per_worker": config.compute.cpus_per_worker,
        },
    }


def _by_model(config: RunConfig, values: Sequence[Setting]) -> Setting:
    """The value of a run's one model; of several, theirs by what they are called."""
    if config.results.models == 1:
        return values[0]
    return dict(zip(config.results.labels, values, strict=True))


def make_run(
    config: RunConfig,
    source: Source,
    models: Sequence[Description],
    plan: Plan,
    profiles: Sequence[Profile],
    beside: Mapping[str, Setting],
) -> Run:
    """Put together what run.json holds. beside: as for the identity.

    Of several models `model` and `profile` are those of the one whose scores rank first; all stand
    in `models` and `profiles`, by what they are called.
    """
    found = [profile.identity() for profile in profiles]
    identity = identity_without_profile(config, source, models, beside)
    identity["profile"] = _by_model(config, found)
    deciding = config.results.deciding - 1
    recorded: dict[str, Any] = {
        # How the scores of each model (from 1) are made, for runs that would reuse them.
        "scoring": [
            scoring(asked, model.digest, profile)
            for asked, model, profile in zip(config.scorers.values(), models, profiles, strict=True)
        ],
        # Tells this start from one with the same fingerprint, after --overwrite.
        "start": uuid.uuid4().hex,
        "config": config.model_dump(mode="json"),
        "model": models[deciding].to_json(),
        "profile": profiles[deciding].to_json(),
        "versions": versions(),
        "plan": {
            "shards": len(plan),
            "queries": int(plan.queries.sum()),
            "pairs": plan.pairs,
            "tokens": plan.tokens,
            "tokens_a_pair": list(plan.tokens_a_pair),
            "digest": plan.digest,
        },
    }
    if len(models) > 1:
        recorded["models"] = _by_model(config, [model.to_json() for model in models])
        recorded["profiles"] = _by_model(config, [profile.to_json() for profile in profiles])
    return Run(identity, recorded)


def stored_profiles(stored: dict[str, Any]) -> list[Profile]:
    """The profiles of an earlier start, in the order of its models."""
    several = stored.get("profiles")
    found = [stored["profile"]] if several is None else list(several.values())
    return [Profile.from_json(values) for values in found]


def versions() -> dict[str, str]:
    """Library versions: recorded with a run, never part of its name."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def stored_run(store: Store) -> dict[str, Any] | None:
    """The record of the run under an output, or None.

    Raises `OutputError` when run.json is damaged.
    """
    content = store.read(RUN)
    if content is None:
        return None
    try:
        values = records.read_run(content)
        stored_profiles(values)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputError(
            f"{store.url}/{RUN} is damaged or was written by another version.",
            "Start again with --overwrite, or choose another output.",
        ) from None
    return values


def stored_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of the run under an output, or None.

    Raises `OutputError` when it is damaged.
    """
    content = store.read(MANIFEST)
    if content is None:
        return None
    try:
        return records.read_manifest(content)
    except ValueError:
        raise OutputError(
            f"{store.url}/{MANIFEST} is damaged.",
            f"Remove {SUCCESS} and run the same command again: it is written anew, and nothing is "
            "scored again.",
        ) from None


def stored_gates(store: Store, fingerprint: str) -> list[dict[str, Any]]:
    """The gates in the manifest of a run, once all of its shards were committed; else none."""
    try:
        manifest = stored_manifest(store)
    except OutputError:
        return []  # `status --verify` names a manifest that is damaged
    if manifest is None or manifest.get("fingerprint") != fingerprint:
        return []
    gates = manifest.get("gates", [])
    return [{key: gate[key] for key in ("name", "limit", "found", "passed")} for gate in gates]


def refuse_other(
    store: Store,
    stored: dict[str, Any],
    identity: dict[str, Any],
    kind: str = "run",
    names: tuple[str, str] | None = None,
) -> None:
    """Raise `OutputError` with the difference when an output holds another run (or export).

    Compares everything but the profile, which a resumed run takes from the record. names: of the
    models there and here, told where the models differ.
    """
    there = {key: value for key, value in stored["identity"].items() if key != "profile"}
    changes = list(differences(there, identity))
    if names is not None and names[0] != names[1] and there.get("model") != identity["model"]:
        changes.insert(0, f"model.name: {_shown(names[0])} -> {_shown(names[1])}")
    if changes:
        shown = "\n".join(f"  {line}" for line in changes[:8])
        more = f"\n  … and {len(changes) - 8} more" if len(changes) > 8 else ""
        remedy = "Choose another output, or start again with --overwrite."
        if {**there, "reuse": None} == {**identity, "reuse": None}:
            begun = ", ".join(there.get("reuse", {})) or "no output"
            remedy = (
                f"It goes on with the reuse that it began with: {begun}. Name that in reuse; "
                "`rankmill nightly` and `rankmill plan` find it by themselves with --reuse-under."
            )
        raise OutputError(f"{store.url} holds another {kind}. What differs:\n{shown}{more}", remedy)


def differences(old: dict[str, Any], new: dict[str, Any], where: str = "") -> Iterator[str]:
    """What two records do not share, a line a value: `settings.max_length: 256 -> 512`."""
    for key in sorted(old.keys() | new.keys()):
        place = f"{where}.{key}" if where else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, place)
        elif before != after:
            yield f"{place}: {_shown(before)} -> {_shown(after)}"


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:80]
