"""Checks a host's API before anything is changed: the login, the node, the rights that `up` needs, the files of guests.
All refusals at once.
"""

from __future__ import annotations

import hashlib
import ssl

from homelab import rights
from homelab.container.creation import configuration
from homelab.errors import HomelabError
from homelab.host import options
from homelab.host.facts import HostFacts
from homelab.host.plan import Wanted
from homelab.remote.proxmox import files
from homelab.remote.proxmox.api import OUTAGE_SECONDS, Api, identity
from homelab.remote.proxmox.connection import FINGERPRINT_COMMAND, colons
from homelab.rights import Needs, Permissions
from homelab.settings import Container, Host, Vm
from homelab.vm.config import recorded
from homelab.vm.plan import wish_of


def check(
    name: str,
    host: Host,
    facts: HostFacts,
    want: Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    patience: float = OUTAGE_SECONDS,
) -> list[HomelabError]:
    """Refusals of using a host's API as these settings need; empty if they don't need it.

    :param name: the host's in the settings.
    :param facts: a reading of the host with its guests.
    :param vms: of this host, by their names in the settings.
    :param containers: of this host, by their names in the settings.
    :param patience: seconds that an outage of the API may last.
    """
    needs = needed(name, host, facts, want, vms, containers)
    if host.api is None or not needs:
        return []
    if fingerprint_error := _fingerprint_error(name, host, facts):
        return [fingerprint_error]
    node = host.node or name
    access = Permissions.parse(facts.cluster.users) if facts.cluster.users else None
    try:
        api = Api(host, node, access=lambda: access, patience=patience)
        nodes = [str(row["node"]) for row in api.get("nodes", f"to log in to {name}'s Proxmox VE API")]
        if node not in nodes:
            return [_no_node_error(name, node, nodes)]
        # Only of guests that are to be created: the files of existing ones may be gone.
        new_vms = {key: vm for key, vm in vms.items() if facts.guests.config(vm.vmid) is None}
        if not host.api.is_root:
            errors = [error for vm_name, vm in new_vms.items() for error in _roots_options(vm_name, host, vm)]
            privileges = {
                path: set(api.get("access/permissions", f"to see what {identity(host)} may", path=path).get(path, ()))
                for path in needs
            }
            lacking = rights.missing(needs, privileges)
            if errors := [*errors, *([_rights_error(name, host, access, lacking)] if lacking else [])]:
                return errors
        new_containers = {
            key: container for key, container in containers.items() if facts.guests.config(container.ctid) is None
        }
        return files.check(api, name, host, new_vms, new_containers)
    except HomelabError as error:
        return [error]


def needed(
    name: str,
    host: Host,
    facts: HostFacts,
    want: Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
) -> Needs:
    """The rights that an `up` with these settings needs. Arguments as of `check`."""
    downloads = [rights.of_download(download, host.node or name) for download in host.downloads.values()]
    parts = [
        *_mappings(name, host, facts),
        *_vms(host, facts, want, vms),
        *_containers(facts, containers),
        *downloads,
    ]
    return rights.together(parts)


def _mappings(name: str, host: Host, facts: HostFacts) -> list[Needs]:
    needs = []
    entries = facts.guests.mapping_entries
    for gpu, card in host.gpus.items():
        if card.may_leave and host.api is not None:
            mapping = host.mapping_of(gpu)
            has_entry = any(entry.get("node") == (host.node or name) for entry in entries.get(mapping, []))
            needs.append(rights.of_mapping(mapping, write=not has_entry, make=mapping not in entries))
    return needs


def _vms(host: Host, facts: HostFacts, want: Wanted, vms: dict[str, Vm]) -> list[Needs]:
    needs = []
    for name, vm in vms.items():
        config = facts.guests.config(vm.vmid)
        if config is None and vm.create is not None:
            models = not options.refused(facts, f"vms.{name}", options.CPU_MODELS)
            needs.append(rights.of_new_vm(name, vm.vmid, vm.create, models=models))
        values = config.values if config else {}
        keys = list(recorded(values, wish_of(name, vm, host, want.gpus), {})[0]) if config or vm.create else []
        needs.append(rights.of_vm(vm, host, keys, power=bool(keys) or vm.wanted_power != "keep"))
    return needs


def _containers(facts: HostFacts, containers: dict[str, Container]) -> list[Needs]:
    return [
        rights.of_new_container(
            container.ctid,
            configuration(name, container.create),
            container.create,
            facts.pve,
        )
        for name, container in containers.items()
        if container.create is not None
    ]


def _fingerprint_error(name: str, host: Host, facts: HostFacts) -> HomelabError | None:
    """The error if the fingerprint in the settings is that of the cluster's authority, which no server shows."""
    wanted = host.api and host.api.fingerprint
    authority, certificate = sha256_of(facts.cluster.authority), sha256_of(facts.cluster.certificate)
    if wanted is None or wanted != authority or wanted == certificate:
        return None
    correct_one = f": {colons(certificate)}" if certificate else ""
    return HomelabError(
        wanted=f"hosts.{name}.api.fingerprint of the certificate that the host's API shows",
        found="it is that of the cluster's own authority, /etc/pve/pve-root-ca.pem, the first that "
        "`pvenode cert info` lists",
        why="the API shows another certificate, which the authority has signed: this one identifies no node",
        next="set the fingerprint of pve-ssl.pem, or pveproxy-ssl.pem where there is one "
        f"(`{FINGERPRINT_COMMAND}`){correct_one}; or give caFile, a copy of /etc/pve/pve-root-ca.pem, instead",
    )


def sha256_of(pem: str) -> str | None:
    """The SHA-256 fingerprint of the first certificate of a PEM text; None: it has none."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if begin not in pem or end not in pem:
        return None
    first = pem[pem.index(begin) : pem.index(end) + len(end)]
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    except ValueError:
        return None


def _no_node_error(name: str, node: str, nodes: list[str]) -> HomelabError:
    return HomelabError(
        wanted=f"the node {node}, as hosts.{name} is in Proxmox VE",
        found=f"its API knows no node of that name; there are: {', '.join(nodes)}",
        why="mappings and guests are a node's",
        next=f"correct hosts.{name}.node: the name that `hostname` prints on the host",
    )


def _roots_options(name: str, host: Host, vm: Vm) -> list[HomelabError]:
    return [
        HomelabError(
            wanted=f"vms.{name}.create.options.{key}",
            found=f"this program is logged in as {identity(host)}",
            why="in Proxmox VE only root@pam with a password may set that, and no token",
            next=f"take {key} out; or set hosts.{vm.host}.api.user: root@pam, and password",
        )
        for key in rights.roots_alone(vm.create.options if vm.create else {})
    ]


def _rights_error(name: str, host: Host, access: Permissions | None, lacking: Needs) -> HomelabError:
    who = identity(host)
    return HomelabError(
        wanted=f"the rights of {who} that these settings take on {name}",
        found=f"it lacks {rights.described(lacking)}",
        why=f"{who} lacks the right to what `up` has to do: it would end half-way; nothing was changed",
        next=rights.advice(access, who, lacking),
    )
