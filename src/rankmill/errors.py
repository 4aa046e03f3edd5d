"""What can go wrong, and the exit code that each kind carries.

RankmillError      1   (never raised itself)
├── StartError     2   nothing was started
│   ├── ConfigError    a setting, a flag, an unknown key
│   ├── InputError     a file, a column, a type, an order of rows
│   │   └── DoubledIds     an id of a table of texts that stands in several rows
│   ├── ModelError     a model that cannot be found, trusted or loaded
│   │   └── BackendUnfit   another backend can score it
│   └── OutputError    an output folder that holds something else
├── RunFailed      1   part-way: what is committed stays, the same command resumes
├── GatesFailed    3   all is committed, and not good enough to be called complete
└── OutputBusy     4   another run holds the output
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from rankmill.masking import mask

# A name or a list of names may be of any length.
_LONGEST = 4_000


class RankmillError(Exception):
    """Base of every error that a user can mend.

    `message` says what was expected, what was found and where; `remedy` says what to do. Neither
    ever holds a payload (a query or document text); credentials are taken out here, whoever put
    them in.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        self.message = _presentable(message)
        self.remedy = None if remedy is None else _presentable(remedy)
        super().__init__(self.message, self.remedy)

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


def _presentable(text: str) -> str:
    # Far more than is shown is masked, so that what is shown holds no half of a credential.
    return _shortened(mask(_shortened(text, 8 * _LONGEST)), _LONGEST)


def _shortened(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


class StartError(RankmillError):
    """Nothing was started: the command, its settings, its input or its model are at fault."""

    exit_code = 2


class ConfigError(StartError):
    """A setting is unknown, of the wrong type, or impossible together with another."""


class InputError(StartError):
    """The input cannot be used: a missing file or column, a wrong type, rows out of order."""


class DoubledIds(InputError):
    """An id has more than one text; only another table mends that."""


class ModelError(StartError):
    """The model cannot be found, cannot be trusted, or does not match its own weights."""


class BackendUnfit(ModelError):
    """A backend cannot score a model on this node; torch can."""


class OutputError(StartError):
    """The output folder holds another run, or lies where it must not."""


class RunFailed(RankmillError):
    """Some shards failed. What is committed stays; the same command resumes."""

    exit_code = 1


class GatesFailed(RankmillError):
    """A finished run does not reach what its gates ask. The parts stay, without `_SUCCESS`.

    `manifest` is the run's, with what the gates found.
    """

    exit_code = 3

    def __init__(self, message: str, remedy: str | None, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        super().__init__(message, remedy)

    def __reduce__(self) -> tuple[type[GatesFailed], tuple[str, str | None, dict[str, Any]]]:
        return GatesFailed, (self.message, self.remedy, self.manifest)


class OutputBusy(RankmillError):
    """Another live run holds the output's lease."""

    exit_code = 4


def kind_and_place(error: BaseException) -> str:
    """`ValueError in model.py:31`: of an error of other code all else may quote a row."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def is_interrupt(error: BaseException) -> bool:
    """Whether an error asks this process to stop, rather than tells what went wrong.

    Panics of libraries written in Rust are no `Exception`, and `sys.exit` in somebody's model is
    a failure like others.
    """
    return isinstance(error, KeyboardInterrupt | GeneratorExit)
