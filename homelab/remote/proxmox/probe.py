"""Checks a host's API before anything is changed: the login, the node, the files of guests. All refusals at once."""

from __future__ import annotations

from homelab.errors import HomelabError
from homelab.facts.host import HostFacts
from homelab.remote.proxmox import files
from homelab.remote.proxmox.api import OUTAGE_SECONDS, Api
from homelab.settings import Container, Host, Vm


def check(
    name: str,
    host: Host,
    facts: HostFacts,
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
    if not (host.gives_cards or host.downloads or vms or any(container.create for container in containers.values())):
        return []
    node = host.node or name
    if facts.cluster.node not in ("", node):
        return [
            HomelabError(
                wanted=f"the node {node}, as hosts.{name} is in Proxmox VE",
                found=f"its name there is {facts.cluster.node}",
                why="mappings and guests are a node's, and each node answers for itself alone",
                next=f"correct hosts.{name}.node: the name that `hostname` prints on the host",
            )
        ]
    try:
        api = Api(host, node, patience=patience)
        api.get("version", f"to use {name}'s Proxmox VE API")
        # Only of guests that are to be created: the files of existing ones may be gone.
        guests: dict[str, Vm | Container] = {f"vms.{key}": vm for key, vm in vms.items()}
        guests |= {f"containers.{key}": container for key, container in containers.items()}
        new = {place: guest for place, guest in guests.items() if facts.guests.config(guest.guest_id) is None}
        return files.check(api, name, host, new)
    except HomelabError as error:
        return [error]
