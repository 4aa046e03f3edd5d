"""Audit of what is installed: consistent, as pinned, from an index, without known advisories.

The last needs the advisory database of osv.dev. Where it cannot be reached the script says that
nothing was audited, and passes: a machine without a network proves nothing either way. Each
package is asked for by name and version; one that the database does not know counts as unknown,
never as clean.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

DATABASE = os.environ.get("ADVISORIES_URL", "https://api.osv.dev") + "/v1/querybatch"
# Advisories that do not concern rankmill: id, and why.
ACCEPTED: dict[str, str] = {}
OWN = "rankmill"
# A tool of the environment itself, not a dependency.
UNPINNED = {OWN, "pip", "setuptools", "wheel"}


def name_of(text: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def pinned(path: Path) -> dict[str, str]:
    """The exact versions that constraints name."""
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in path.open())
    found = (line.split("==") for line in lines if "==" in line)
    return {name_of(name): version.strip() for name, version in found}


def installed() -> dict[str, str]:
    """Name and version of every distribution, without a build's local label."""
    return {
        name_of(one.metadata["Name"]): one.version.partition("+")[0]
        for one in metadata.distributions()
    }


def from_elsewhere() -> list[str]:
    """Distributions that were installed from a folder, an archive or a repository."""
    return sorted(
        name
        for one in metadata.distributions()
        if (name := name_of(one.metadata["Name"])) != OWN and one.read_text("direct_url.json")
    )


def advisories(packages: dict[str, str]) -> dict[str, list[str]]:
    """Ids of the known advisories of each package that has some. Raises `OSError`."""
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
        for name, version in packages.items()
    ]
    request = urllib.request.Request(
        DATABASE, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        results = json.load(answer)["results"]
    if len(results) != len(queries):
        raise OSError(f"{len(results)} answers to {len(queries)} questions")
    found = {
        name: [one["id"] for one in result.get("vulns", []) if one["id"] not in ACCEPTED]
        for name, result in zip(packages, results, strict=True)
    }
    return {name: ids for name, ids in found.items() if ids}


def main() -> None:
    """Print what was found; exit code 1 where something must be done."""
    wrong = []
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    if check.returncode:
        wrong.append(check.stdout.strip())
    there, wanted = installed(), pinned(Path(sys.argv[1]))
    for name in sorted(there.keys() - UNPINNED):
        if name not in wanted:
            wrong.append(f"{name} {there[name]} is installed and not pinned")
        elif there[name] != wanted[name]:
            wrong.append(f"{name} {there[name]} is installed, {wanted[name]} is pinned")
    wrong += [f"{name} was not installed from a package index" for name in from_elsewhere()]
    print(f"audit: {len(there)} packages, compared with {len(wanted)} pins")
    try:
        known = advisories({name: there[name] for name in sorted(there.keys() - {OWN})})
        wrong += [f"{name} {there[name]}: {', '.join(ids)}" for name, ids in known.items()]
        print(f"audit: {len(known)} packages with known advisories")
    except (OSError, ValueError, KeyError) as error:
        print(f"audit: SKIPPED, advisories were not looked up: {error}")
    for line in wrong:
        print(f"audit: {line}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
