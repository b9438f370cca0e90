"""The proposal of `homelab init`, before any change: the settings file, the commands for the API's user, and the
refusals of `up`.
"""

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
from homelab.init.api_user import TOKEN, Making, making, name_for
from homelab.init.merge import HEAD, merged
from homelab.nvidia import preview
from homelab.nvidia.reading import SystemReading
from homelab.remote.proxmox import probe
from homelab.remote.proxmox.connection import colons
from homelab.settings import Container, Host, Settings, Vm, parse, stack_file
from homelab.settings.secrets import is_encrypted, left_open, readable
from homelab.settings.types import is_name
from homelab.vm import plan as vm_plan

# Stands for the token's secret until the token is made; `up` refuses it (homelab/settings/secrets.py).
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
    """A proposal of init. `text`: the settings file; `making`: of the API's user, None: no user is needed, or it
    exists; `refused`: the refusals of `up`; `remarks`: the plan's lines about guests.
    """

    text: str
    making: Making | None
    refused: list[HomelabError]
    remarks: list[str]

    @property
    def commands(self) -> list[str]:
        """The commands that make the API's user."""
        return self.making.commands if self.making else []


def cluster_settings(host: Mapping[str, object], facts: HostFacts) -> dict[str, str]:
    """The setting `cluster` of a node, with which the cluster's nodes restart in turns; empty where the file has it.

    :param host: the host's settings in the file.
    """
    name = facts.cluster.name
    return {"cluster": name} if name and "cluster" not in host and is_name(name) else {}


def api_settings(stack: str, host: Mapping[str, Any], facts: HostFacts, port: int) -> dict[str, Any] | None:
    """The setting `api` of a host with init's token; None: the file has another token, which stays.

    :param host: the host's settings in the file.
    """
    before = host.get("api")
    name = name_for(stack, facts.cluster.users)
    token = f"{name}!{TOKEN}"
    # A token whose secret was never filled in isn't in use.
    if isinstance(before, Mapping) and before.get("token") != token and before.get("tokenSecret") != OPEN:
        return None
    sha256 = probe.sha256_of(facts.cluster.certificate)
    if sha256 is None:
        raise HomelabError(
            wanted="the certificate that the host's API shows",
            found="none in /etc/pve/local (pveproxy-ssl.pem, pve-ssl.pem)",
            why="without its fingerprint, the token would go to any machine that answers at the address",
            next="see whether Proxmox VE's services run on the host: systemctl status pve-cluster pveproxy",
        )
    api: dict[str, Any] = {"token": token, **({"port": port} if port != 8006 else {})}
    if not (isinstance(before, Mapping) and is_encrypted(before.get("tokenSecret"))):
        api["tokenSecret"] = OPEN
    if not (isinstance(before, Mapping) and (before.get("caFile") or before.get("publicCa"))):
        api["fingerprint"] = colons(sha256)
    return api


def propose(
    before: Existing,
    values: Mapping[str, Any],
    stack: str,
    host_name: str,
    facts: HostFacts,
    file: str,
    systems: Mapping[str, SystemReading] = MappingProxyType({}),
) -> Proposal:
    """The settings file with these values, the refusals, and the commands for the API's user.

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
        return Proposal(text, None, [*getattr(error, "errors", [error]), *refused], remarks)
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
    needs = probe.needed(host_name, host, facts, want, vms, containers)
    made = None
    if needs and host.api is not None and host.api.token == f"{name_for(stack, facts.cluster.users)}!{TOKEN}":
        secret = host.api.token_secret.get_secret_value() if host.api.token_secret else OPEN
        made = making(stack, facts.cluster.users, needs, has_secret=secret != OPEN, pve=facts.pve)
    return Proposal(text, made, refused, remarks)
