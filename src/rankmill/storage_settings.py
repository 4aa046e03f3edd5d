"""The settings of object stores: how they are reached, never with which credentials."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rankmill.masking import has_credentials
from rankmill.settings import Name, Section, read_section

# The protocols of s3fs.
S3 = ("s3", "s3a")


class EncryptionConfig(Section):
    """What S3 is asked to encrypt written objects with, by keys that it holds itself.

    key_id: of the KMS key, its id, ARN or alias, which is no secret; null: the bucket's own.
    """

    algorithm: Literal["AES256", "aws:kms", "aws:kms:dsse"]
    key_id: Name | None = None

    @model_validator(mode="after")
    def _has_keys_to_name(self) -> Self:
        if self.key_id is not None and self.algorithm == "AES256":
            raise ValueError("key_id names a key of KMS, and AES256 uses none; ask for aws:kms")
        return self


class StorageConfig(Section):
    """How object stores are reached. Credentials come from each node's own environment.

    All of it is S3's; other stores are reached as their fsspec implementation is configured. What
    is not set here the environment and the profile decide.
    """

    profile: Name | None = Field(None, description="a profile in the nodes' AWS configuration")
    endpoint_url: Name | None = Field(None, description="http://… or https://… of the store")
    region: Name | None = None
    path_style: bool | None = Field(
        None, description="the bucket in the path rather than in the host's name"
    )
    anonymous: bool = Field(False, description="unsigned requests, for public buckets")
    encryption: EncryptionConfig | None = None

    @field_validator("endpoint_url")
    @classmethod
    def _is_open_to_be_shown(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        if url is not None and has_credentials(url):
            raise ValueError(
                "it carries credentials; leave them to the environment or an AWS profile"
            )
        return url


# Everything as the process's environment says.
ENVIRONMENT = StorageConfig()


def of_profile(profile: str | None) -> StorageConfig:
    """What `--profile` asks for. Raises `ConfigError` for an empty name."""
    return read_section(StorageConfig, {"profile": profile})
