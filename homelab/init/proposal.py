"""What `homelab init` proposes, before it does anything: the settings file, what makes the API's user, and what `up` would refuse."""

from __future__ import annotations

import hashlib
import json
import ssl
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
from homelab.settings import Settings, parse, stack_file
from homelab.settings.secrets import is_encrypted, left_open, readable
from homelab.settings.types import is_name
from homelab.vm import plan as vm_plan

# What stands for the token's secret until it is known; `up` refuses it (homelab/settings/secrets.py).
OPEN = "FILL-IN"


@dataclass(frozen=True)
class Existing:
    """A stack's file as it is. `text`: empty where there is none, of the example what Pulumi has added to it; `values`: what it has under `homelab:`, by
    key without that; `example`: is it the example, never filled in?
    """

    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    example: bool = False

    @property
    def settings(self) -> Settings | None:
        """As the program loads it; None: there are none.

        :raises HomelabError: they are mistaken.
        """
        return _loaded(self.text, "the stack's file") if self.values else None


def existing(text: str, file: str) -> Existing:
    """:raises HomelabError: it isn't YAML, or settings that the program doesn't take."""
    if not text.strip():
        return Existing()
    try:
        whole = yaml.safe_load(text)
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
        str(key).removeprefix("homelab:"): one for key, one in (config or {}).items() if str(key).startswith("homelab:")
    }
    if not values.get("hosts"):
        return Existing(text)
    settings = _loaded(text, file)
    if any(place[-1] == "hostKey" and place[0] == "hosts" for place in left_open(settings)):
        # With the example's host key no host can be reached: nobody has used it. What Pulumi has put beside it is the stack's: without its
        # salt, the passphrase would no longer be the one of its secrets.
        own = {key: one for key, one in whole.items() if key in stack_file.KEYS_OF_PULUMI and key != "config"}
        return Existing(HEAD + yaml.safe_dump(own) if own else "", example=True)
    return Existing(text, values)


def _loaded(text: str, file: str) -> Settings:
    """The settings in a file's text, by the program's own loader.

    :raises HomelabError: they are mistaken.
    """
    whole = yaml.safe_load(text)
    stack_file.check(whole, file)
    config = {key: one for key, one in whole["config"].items() if key.startswith("homelab:")}
    return parse({key.removeprefix("homelab:"): json.dumps(readable(one)) for key, one in config.items()})


@dataclass(frozen=True)
class Proposal:
    """`text`: the settings file; `making`: of the API's user, None: none is needed, or there is one; `refused`: what `up` would
    refuse; `remarks`: the plan's lines for guests.
    """

    text: str
    making: Making | None
    refused: list[HomelabError]
    remarks: list[str]


def fingerprint(facts: HostFacts) -> str | None:
    """The SHA-256 fingerprint of the certificate that the host's API shows, as openssl prints it; None: the reading has none."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    pem = facts.cluster.certificate
    if begin not in pem or end not in pem:
        return None
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index(begin) : pem.index(end) + len(end)])
    digits = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def cluster_settings(host: Mapping[str, object], facts: HostFacts) -> dict[str, str]:
    """The `cluster` of a node that the file doesn't know as one yet: it restarts in turn with the others then.

    :param host: what the file has of the host.
    """
    name = facts.cluster.name
    return {"cluster": name} if name and "cluster" not in host and is_name(name) else {}


def api_settings(stack: str, host: Mapping[str, Any], facts: HostFacts, port: int) -> dict[str, Any] | None:
    """The `api` of a host whose guests get cards through it; None: the person's own is left as it is.

    :param host: what the file has of the host.
    """
    there = host.get("api")
    name = name_for(stack, facts.cluster.users)
    token = f"{name}!{TOKEN}"
    # One whose secret was never filled in is nobody's.
    if isinstance(there, Mapping) and there.get("token") != token and there.get("tokenSecret") != OPEN:
        return None
    shown = fingerprint(facts)
    if shown is None:
        raise HomelabError(
            wanted="the certificate that the host's API shows",
            found="none in /etc/pve/local (pveproxy-ssl.pem, pve-ssl.pem)",
            why="without its fingerprint, whoever answers at the address would be given the token",
            next="see whether Proxmox VE's services run on the host: systemctl status pve-cluster pveproxy",
        )
    found: dict[str, Any] = {"token": token, **({"port": port} if port != 8006 else {})}
    if not (isinstance(there, Mapping) and is_encrypted(there.get("tokenSecret"))):
        found["tokenSecret"] = OPEN
    if not (isinstance(there, Mapping) and (there.get("caFile") or there.get("publicCa"))):
        found["fingerprint"] = shown
    return found


def propose(
    before: Existing,
    values: Mapping[str, Any],
    stack: str,
    host_name: str,
    facts: HostFacts,
    file: str,
    systems: Mapping[str, SystemReading] = MappingProxyType({}),
) -> Proposal:
    """The settings file with these values, and what follows from it.

    :param values: as of `choices.settings_of`.
    :param file: the file's name, for messages.
    :param systems: what was read inside: `host`, or a guest's id.
    :raises HomelabError: the settings can't be carried out on any host.
    """
    text = merged(before.text, values)
    settings = _loaded(text, file)
    host = settings.hosts[host_name]
    vms = {name: vm for name, vm in settings.vms.items() if vm.host == host_name}
    containers = {name: one for name, one in settings.containers.items() if one.host == host_name}
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
    found = [error for _, errors in parts for error in errors]
    # What the settings alone say is said again, with more, by whoever has looked inside.
    said_better = {(error.wanted, error.found) for error in found}
    refused = [error for error in refused if (error.wanted, error.found) not in said_better] + found
    remarks += [line for said, _ in parts for line in said.splitlines()]
    needs = probe.needed(host_name, host, facts, want, vms, containers)
    made = None
    if needs and host.api is not None and host.api.token == f"{name_for(stack, facts.cluster.users)}!{TOKEN}":
        secret = host.api.token_secret.get_secret_value() if host.api.token_secret else OPEN
        made = making(stack, facts.cluster.users, needs, has_secret=secret != OPEN, pve=facts.pve)
    return Proposal(text, made, refused, remarks)
