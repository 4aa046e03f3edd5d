"""Credentials taken out of text before anybody sees it.

Nothing here knows where a message comes from: object stores, hubs and Ray put URLs, headers and
what a server answered into their errors, and any of these may hold what lets a reader in.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

MASK = "***"

# How names end of what lets in whoever has it; and names that mean it in a URL's parameters alone.
_NAMED = (
    r"(?:signature|token|secret|credential|passw(?:or)?d|passphrase|(?<![a-z])sig|api[_-]?key|"
    r"access[_-]?key(?:[_-]?id)?|account[_-]?key|authorization)"
)
_PARAMETER = r"(?<=[?&#;])(?:key|auth|pass|pwd|sas|code)"
_SIGNED = re.compile(rf"[?&#;][^=&]*{_NAMED}=|{_PARAMETER}=", re.IGNORECASE)
# user:password@host, without the scheme that belongs before it.
_USER = re.compile(r"[^\s/:@?#]+:[^\s/@]+@[^\s/]")

# What AWS, Hugging Face, GitHub and Google hand out is known by its look.
_KNOWN_FORMS = (
    re.compile(r"(?P<before>\b)(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(?P<before>\b)(?:hf|gh[opsu])_[A-Za-z0-9]{20,}"),
)
# Characters of a user or a password: without a bound a long text takes the square of its length.
_LONGEST = 4_096
_ANY = f"{{0,{_LONGEST}}}"
_PATTERNS = (
    # scheme://user:password@host, and a token in the user's place. In abfs:// the container
    # stands there; a port is no password.
    re.compile(
        r"(?P<before>\b(?!abfss?:|az:)[a-z][a-z0-9+.-]{0,30}://)"
        rf"(?:[^\s/?#@:'\"]{_ANY}(?::(?!\d+(?:/|\s|$))|%3A)[^\s@'\"]{_ANY}?"
        rf"|[^\s/?#@:'\"]{_ANY}?)"
        r"(?P<end>@|%40)",
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?P<before>(?<![\w:/@.%+-])[\w.+-]{{1,{_LONGEST}}}:)[^\s/@:'\"]{{6,{_LONGEST}}}(?P<end>@)(?=\w)",
    ),
    # Parameters, headers and settings that are named for what they hold.
    re.compile(
        rf"(?P<before>(?:{_NAMED}|{_PARAMETER})['\"]?\s?[=:]\s?['\"]?"
        r"(?:Bearer |Basic |AWS4-\S+ )?)[^\s&'\",;)}\]]{6,}",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<before>\bBearer )\S{6,}", re.IGNORECASE),
    *_KNOWN_FORMS,
)
# A setting in the user's own sentences, in which "a secret: how to" is none.
_SENTENCE = "instruction"
# Variables that hold a secret itself; those that end in _FILE or _PATH say where one lies.
_SECRET_NAME = re.compile(
    r"(?:(?:^|_)(?:SECRET|TOKEN|CREDENTIALS?|ACCESS_KEY|ACCESS_KEY_ID|ACCOUNT_KEY|SAS|"
    r"CONNECTION_STRING)|_PWD|API_?KEY|PASSWORD|PASSWD|PASSPHRASE)(?:_\d+)?$",
    re.IGNORECASE,
)
# A shorter value is no secret, and would be found in ordinary words.
_LEAST = 8
# What would move a terminal's cursor or change its colours; and halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def has_credentials(path: str) -> bool:
    """Whether a URL names a user, something after a colon that is not a port, or a signature."""
    # Whoever writes a colon and an at sign as %3A and %40 means the same.
    host = unquote(re.split(r"[/?#]", path.partition("://")[2], maxsplit=1)[0])
    _, colon, port = host.partition(":")
    arn = host.startswith("arn:")  # an S3 access point
    user = "@" in host and not path.startswith(("abfs://", "abfss://", "az://"))  # container@host
    user = user or _USER.match(path) is not None
    signed = _SIGNED.search(path)
    return user or signed is not None or bool(colon and not port.isdigit() and not arn)


def mask(text: str) -> str:
    """The same text without credentials, and with control characters written out.

    Taken out are credentials in URLs, values of parameters named for secrets, keys of well-known
    form, and the values of this process's environment variables that hold secrets.
    """
    return written_out(_without_secrets(text, _PATTERNS))


def _without_secrets(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    for value in _secrets():
        text = text.replace(value, MASK)
    for pattern in patterns:
        text = pattern.sub(_masked, text)
    return text


def secret_setting(settings: dict[str, Any]) -> str | None:
    """The dotted name of a setting that holds a credential, None where none does.

    That is what `mask` would take out, but of an instruction only what is known by its look.
    """
    for name, value in _texts(settings):
        sentence = name.rpartition(".")[2] == _SENTENCE
        if _without_secrets(value, _KNOWN_FORMS if sentence else _PATTERNS) != value:
            return name
    return None


def _texts(values: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - plain values
    """The texts among nested values, with their dotted names."""
    if isinstance(values, str):
        yield name, values
    elif isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, f"{name}.{key}" if name else str(key))


def mask_values(values: Any) -> Any:  # noqa: ANN401 - plain values, as YAML holds them
    """The same nested values with every text masked."""
    if isinstance(values, dict):
        return {key: mask_values(value) for key, value in values.items()}
    if isinstance(values, list):
        return [mask_values(value) for value in values]
    return mask(values) if isinstance(values, str) else values


def written_out(text: str) -> str:
    """The same text with control characters written out: it moves no terminal's cursor."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def mask_record(record: logging.LogRecord) -> bool:
    """A filter of a logger: what it hands on is masked, whatever handler there is."""
    record.msg, record.args = mask(record.getMessage()), None
    return True


def _masked(found: re.Match[str]) -> str:
    return found["before"] + MASK + (found.groupdict().get("end") or "")


def _secrets() -> list[str]:
    """Longest first, so that no secret that holds another is left in part."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return sorted((value for value in values if len(value) >= _LEAST), key=len, reverse=True)
