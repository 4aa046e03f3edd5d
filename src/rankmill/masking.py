"""Credentials taken out of text before anybody sees it.

Nothing here knows where a message comes from: object stores, hubs and Ray put URLs, headers and
what a server answered into their errors, and any of these may hold what lets a reader in.
"""

from __future__ import annotations

import logging
import os
import re

MASK = "***"

# Parameters of a URL that let in whoever has it.
_SIGNED = re.compile(
    r"[?&#;][^=&]*(signature|token|secret|sig|credential|passw(or)?d|api-?_?key|accesskey(id)?)=",
    re.IGNORECASE,
)

_PATTERNS = (
    # scheme://user:password@host, and a token in the user's place. In abfs:// the container
    # stands there; a port is no password.
    re.compile(
        r"(?P<before>\b(?!abfss?:|az:)[a-z][a-z0-9+.-]*://)"
        r"(?:[^\s/?#@:'\"]*:(?!\d+(?:/|\s|$))[^\s@'\"]*|[^\s/?#@:'\"]*)@",
        re.IGNORECASE,
    ),
    # Parameters, headers and settings that are named for what they hold.
    re.compile(
        r"(?P<before>(?:signature|token|secret|credential|passw(?:or)?d|\bsig|api[_-]?key|"
        r"access[_-]?key(?:[_-]?id)?|authorization)['\"]?\s?[=:]\s?['\"]?"
        r"(?:Bearer |Basic |AWS4-\S+ )?)[^\s&'\",;)}\]]{6,}",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<before>\bBearer )\S{6,}", re.IGNORECASE),
    # What AWS, Hugging Face, GitHub and Google hand out is known by its look.
    re.compile(r"(?P<before>\b)(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(?P<before>\b)(?:hf|gh[opsu])_[A-Za-z0-9]{20,}"),
)
# Variables that hold a secret itself; those that end in _FILE or _PATH say where one lies.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?|ACCESS_KEY|ACCESS_KEY_ID|ACCOUNT_KEY|"
    r"API_KEY|SAS|CONNECTION_STRING)(?:_\d+)?$",
    re.IGNORECASE,
)
# A shorter value is no secret, and would be found in ordinary words.
_LEAST = 8
# What would move a terminal's cursor or change its colours; and halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def has_credentials(path: str) -> bool:
    """Whether a URL names a user, something after a colon that is not a port, or a signature."""
    host = re.split(r"[/?#]", path.partition("://")[2], maxsplit=1)[0]
    _, colon, port = host.partition(":")
    arn = host.startswith("arn:")  # an S3 access point
    user = "@" in host and not path.startswith(("abfs://", "abfss://", "az://"))  # container@host
    signed = _SIGNED.search(path)
    return user or signed is not None or bool(colon and not port.isdigit() and not arn)


def mask(text: str) -> str:
    """The same text without credentials, and with control characters written out.

    Taken out are credentials in URLs, values of parameters named for secrets, keys of well-known
    form, and the values of this process's environment variables that hold secrets.
    """
    for value in _secrets():
        text = text.replace(value, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(_masked, text)
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def mask_record(record: logging.LogRecord) -> bool:
    """A filter of a logger: what it hands on is masked, whatever handler there is."""
    record.msg, record.args = mask(record.getMessage()), None
    return True


def _masked(found: re.Match[str]) -> str:
    return found["before"] + MASK + ("@" if found[0].endswith("@") else "")


def _secrets() -> list[str]:
    """Longest first, so that no secret that holds another is left in part."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return sorted((value for value in values if len(value) >= _LEAST), key=len, reverse=True)
