"""Which backend scores a model: the one place where `model.backend: auto` is decided.

OpenVINO on a CPU, where it is installed, converts the model and agrees with torch; torch
everywhere else. What is decided is part of the profile, and binds a run that is resumed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from rankmill.config import ComputeConfig, ModelConfig
from rankmill.errors import BackendUnfit, ConfigError
from rankmill.models import Description, openvino_model
from rankmill.profile import Device, Hardware, Profile, make_profile, probe

log = logging.getLogger("rankmill")


@dataclass(frozen=True)
class Resolved:
    """A profile, and what a user should know about how it came to be (None: nothing)."""

    profile: Profile
    hint: str | None = None
    warning: str | None = None

    def tell(self) -> Profile:
        """The profile, once the user is told."""
        if self.hint is not None:
            log.info("%s", self.hint)
        if self.warning is not None:
            log.warning("%s", self.warning)
        return self.profile


def resolve(
    description: Description,
    model: ModelConfig,
    compute: ComputeConfig,
    device: Device,
    cores: int | None = None,
) -> Resolved:
    """Find the profile on the node this runs on. cores: of it, that scoring may count on.

    Converts and checks the model where OpenVINO is to score it, which can take a minute the first
    time.

    Raises `ConfigError` for a device, precision or backend that is not there, and `BackendUnfit`
    when `model.backend` is openvino and cannot be.
    """
    if model.backend == "openvino" and device != "cpu":
        raise ConfigError(
            f"model.backend is openvino, which scores on CPUs here; the device is {device}.",
            "Set compute.device to cpu, or model.backend to auto.",
        )
    hardware = probe(device)
    if cores is not None:
        hardware = replace(hardware, cores=min(hardware.cores, cores))
    if description.is_int8:
        return Resolved(_int8(description, model, compute, device, hardware))
    operations = description.operations_per_token
    on_torch = make_profile(model, compute, device, hardware, operations_per_token=operations)
    if model.scorer is not None or model.backend == "torch" or device != "cpu":
        return Resolved(on_torch)
    if model.backend == "auto" and not openvino_model.is_installed():
        return Resolved(
            on_torch, hint="OpenVINO scores faster than torch on CPUs: pip install 'rankmill[cpu]'."
        )
    on_openvino = make_profile(
        model, compute, device, hardware, operations_per_token=operations, backend="openvino"
    )
    try:
        description.prepare(on_openvino)
    except BackendUnfit as unfit:
        if model.backend == "openvino":
            raise
        return Resolved(on_torch, warning=f"Scoring runs on torch, which is slower: {unfit}")
    return Resolved(on_openvino)


def _int8(
    description: Description,
    model: ModelConfig,
    compute: ComputeConfig,
    device: Device,
    hardware: Hardware,
) -> Profile:
    """The profile of an int8 folder, which nothing but OpenVINO can score."""
    name = description.to_json()["name"]
    if device != "cpu" or model.backend == "torch":
        found = "model.backend is torch" if device == "cpu" else f"the device is {device}"
        raise ConfigError(
            f"{name} is an int8 folder, which OpenVINO scores on CPUs and nothing else; {found}.",
            "Set compute.device to cpu and model.backend to auto, or score the model that was "
            "quantized.",
        )
    profile = make_profile(
        model,
        compute,
        device,
        hardware,
        operations_per_token=description.operations_per_token,
        backend="openvino",
        int8=True,
    )
    description.prepare(profile)
    return profile
