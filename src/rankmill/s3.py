"""What s3fs and botocore are told: where the store is, how to encrypt, how patient to be.

What `storage.*` leaves open is as this process's environment says: `AWS_…`, the profile, and
`FSSPEC_S3`, which takes whatever s3fs knows.
"""

from __future__ import annotations

import os

from fsspec.config import conf

from rankmill.storage_settings import EncryptionConfig, StorageConfig

Options = dict[str, object]

# One PUT takes up to 5 GiB; s3fs begins a multipart upload at twice this, and the upload of a
# process that is killed would stay, unseen and paid for.
ONE_PUT = {"chunksize": 5 << 30}
# Else s3fs asks for a file's size first, to fetch more than 50 MB of it in ranges.
ONE_GET = {"max_concurrency": 1}
# botocore waits a random share of 1, 2, 4, 8 and 16 s between them: 15 s on average until a store
# that cannot be reached is given up. s3fs does all of that five times for "SlowDown". Of its modes
# only `legacy` repeats whatever answers 429: the others know that status by S3's codes alone.
_ATTEMPTS = 6


def options(access: StorageConfig) -> Options:
    """The arguments of `s3fs.S3FileSystem`.

    What `FSSPEC_S3` gives for an argument that is set here is joined to it: fsspec would drop it.
    """
    # With aiobotocore, which takes a while and is not needed on disk.
    from rankmill.s3_session import CONNECT_TIMEOUT, READ_TIMEOUT, PatientSession

    config: Options = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "http_session_cls": PatientSession,
    }
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        config["retries"] = {"mode": "legacy", "total_max_attempts": _ATTEMPTS}
    config |= _given("config_kwargs")
    if access.path_style is not None:
        style = "path" if access.path_style else "virtual"
        given = config.get("s3")
        config["s3"] = {**(given if isinstance(given, dict) else {}), "addressing_style": style}
    # Listings must show what other processes have committed a moment ago.
    found: Options = {"use_listings_cache": False, "config_kwargs": config}
    if access.profile is not None:
        found["profile"] = access.profile
    if access.anonymous:
        found["anon"] = True
    client = _given("client_kwargs")
    if access.endpoint_url is not None:
        found["endpoint_url"] = access.endpoint_url
        client.pop("endpoint_url", None)  # s3fs would pass on both
    if access.region is not None:
        client["region_name"] = access.region
    if client:
        found["client_kwargs"] = client
    if access.encryption is not None:
        found["s3_additional_kwargs"] = _given("s3_additional_kwargs") | _encryption(
            access.encryption
        )
    return found


def _given(argument: str) -> Options:
    return dict(conf.get("s3", {}).get(argument, {}))


def _encryption(asked: EncryptionConfig) -> Options:
    found: Options = {"ServerSideEncryption": asked.algorithm}
    if asked.key_id is not None:
        found["SSEKMSKeyId"] = asked.key_id
    return found
