"""The proposal of `homelab init`, before any change: the settings file, and the refusals of `up`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml

from homelab.container import plan as container_plan
from homelab.errors import HomelabError
from homelab.host import plan
from homelab.host.facts import HostFacts
from homelab.init.merge import HEAD, merged
from homelab.nvidia import preview
from homelab.nvidia.reading import SystemReading
from homelab.settings import Container, Host, Settings, Vm, parse, stack_file
from homelab.settings.secrets import left_open, readable
from homelab.settings.types import is_name
from homelab.vm import plan as vm_plan

# Stands for the host's password until Pulumi has encrypted it; `up` refuses it (homelab/settings/secrets.py).
OPEN = "FILL-IN"


@dataclass(frozen=True)
class Existing:
    """A stack's existing file. `text`: empty where there is none, of the example only what Pulumi has added; `values`:
    its settings, by key without `homelab:`; `hosts`, `vms`, `containers`: the same as the program loads them;
    `example`: whether it is the example, never filled in.
    """

    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    vms: Mapping[str, Vm] = field(default_factory=dict)
    containers: Mapping[str, Container] = field(default_factory=dict)
    example: bool = False


def existing(text: str, file: str) -> Existing:
    """A stack's file, read.

    :param file: its name, for messages.
    :raises HomelabError: it isn't YAML, or its settings are invalid.
    """
    if not text.strip():
        return Existing()
    try:
        whole = stack_file.parsed(text)
    except yaml.YAMLError:
        raise HomelabError(
            wanted=f"settings in {file}",
            found="it isn't valid YAML",
            why="what is in it must not be lost",
            next="correct it, or choose another stack with --stack",
        ) from None
    config = whole.get("config") if isinstance(whole, dict) else None
    if config is not None and not isinstance(config, dict):
        raise HomelabError(
            wanted=f"settings in {file}",
            found="config: has something else than keys with values",
            why="what is in it must not be lost",
            next="correct it, or choose another stack with --stack",
        )
    values = {
        str(key).removeprefix("homelab:"): value
        for key, value in (config or {}).items()
        if str(key).startswith("homelab:")
    }
    if not values.get("hosts"):
        return Existing(text)
    settings = _loaded(text, file)
    if any(place[-1] == "hostKey" and place[0] == "hosts" for place in left_open(settings)):
        # The example's host key reaches no host, so the example was never used. Pulumi's own keys stay: without its
        # salt, the stack's secrets could no longer be read with its passphrase.
        own = {key: value for key, value in whole.items() if key in stack_file.KEYS_OF_PULUMI and key != "config"}
        return Existing(HEAD + yaml.safe_dump(own) if own else "", example=True)
    return Existing(text, values, settings.hosts, settings.vms, settings.containers)


def _loaded(text: str, file: str) -> Settings:
    """The settings in a file's text, by the program's own loader.

    :raises HomelabError: they are invalid.
    """
    whole = stack_file.parsed(text)
    stack_file.check(whole, file)
    config = {str(key): readable(value) for key, value in whole["config"].items()}
    return parse({key.removeprefix("homelab:"): value for key, value in config.items() if key.startswith("homelab:")})


@dataclass(frozen=True)
class Proposal:
    """A proposal of init. `text`: the settings file; `refused`: the refusals of `up`; `remarks`: the plan's lines about
    guests.
    """

    text: str
    refused: list[HomelabError]
    remarks: list[str]


def cluster_settings(host: Mapping[str, object], facts: HostFacts) -> dict[str, str]:
    """The setting `cluster` of a node, with which the cluster's nodes restart in turns; empty where the file has it.

    :param host: the host's settings in the file.
    """
    name = facts.cluster.name
    return {"cluster": name} if name and "cluster" not in host and is_name(name) else {}


def propose(
    before: Existing,
    values: Mapping[str, Any],
    host_name: str,
    facts: HostFacts,
    file: str,
    systems: Mapping[str, SystemReading] = MappingProxyType({}),
) -> Proposal:
    """The settings file with these values, and the refusals.

    :param values: of `choices.settings_of`.
    :param file: the file's name, for messages.
    :param systems: readings of systems, by `host` or the guest's id.
    :raises HomelabError: the settings can't be carried out on any host.
    """
    text = merged(before.text, values)
    settings = _loaded(text, file)
    host = settings.hosts[host_name]
    vms = {name: vm for name, vm in settings.vms.items() if vm.host == host_name}
    containers = {name: container for name, container in settings.containers.items() if container.host == host_name}
    refused = list(preview.from_settings(settings)) if settings.stacks else []
    remarks: list[str] = []
    try:
        want = plan.wanted(facts, host)
    except HomelabError as error:
        return Proposal(text, [*getattr(error, "errors", [error]), *refused], remarks)
    parts = [
        vm_plan.describe(host_name, facts, host, want, vms),
        container_plan.describe(
            facts, want, containers, vms, host.node or host_name, driver_comes=host.nvidia is not None
        ),
        preview.describe(host_name, host, facts, want, vms, containers, systems),
    ]
    from_readings = [error for _, errors in parts for error in errors]
    # A refusal by the settings alone is repeated, with more in it, by a reading of the system.
    repeated = {(error.wanted, error.found) for error in from_readings}
    refused = [error for error in refused if (error.wanted, error.found) not in repeated] + from_readings
    remarks += [line for text, _ in parts for line in text.splitlines()]
    return Proposal(text, refused, remarks)
