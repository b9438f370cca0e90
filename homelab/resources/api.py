"""What the dynamic resources over the API have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from homelab.resources.base import HostProvider

if TYPE_CHECKING:
    from homelab.remote.proxmox.api import Api
    from homelab.remote.proxmox.machine import Machine, Policy
    from homelab.rights import Access

# What a refresh has read already in this process, by host and path: several resources look at the same VM. Only `read` uses it; a
# change always reads anew.
_READINGS: dict[tuple[str, str], Any] = {}


class ApiProvider(HostProvider):
    """A provider for resources of a node; their inputs have ``host`` (its name in the settings) and ``node``."""

    def api(self, props: dict[str, Any]) -> Api:
        """The API. Raises HomelabError: the host is no longer configured, or can't be logged in to."""
        from homelab.errors import HomelabError
        from homelab.remote.proxmox.api import Api

        host = self.host(props)
        if host.api is None:
            raise HomelabError(
                wanted=f"homelab:hosts.{props['host']}.api in the stack's configuration",
                found="it is missing",
                why="mappings and VMs are changed through it",
                next="put it back; to give them up, take them out and run `pulumi up` while it is still there",
            )
        return Api(host, str(props["node"]), access=lambda: self._access(props))

    def _access(self, props: dict[str, Any]) -> Access | None:
        """Who may what on the node, for advice on a right that is missing; None: it can't be read."""
        from homelab.errors import HomelabError
        from homelab.remote import ssh
        from homelab.rights import Access

        try:
            return Access.parse(asyncio.run(ssh.read(self.host(props), guests=True)).cluster.users)
        except HomelabError:
            return None

    def machine(self, props: dict[str, Any]) -> Machine:
        """The VM of a resource whose inputs have ``vmid`` and ``vm``."""
        from homelab.remote.proxmox.machine import Machine

        return Machine(self.api(props), int(props["vmid"]), str(props["vm"]))

    def reading(self, props: dict[str, Any], path: str, wanted: str) -> Any:
        """A GET for a refresh: at most one of a path in a run."""
        key = (str(props["host"]), path)
        if key not in _READINGS:
            _READINGS[key] = self.api(props).get(path, wanted)
        return _READINGS[key]


def stays(props: dict[str, Any], config: dict[str, str], kind: str, adopted: list[str]) -> str | None:
    """Why a guest that was made here isn't deleted with its resource; None: it is.

    :param kind: VM or container.
    :param adopted: the settings that have it without `create`.
    """
    if props["protect"]:
        return "it is protected"
    if props["mark"] not in config.get("description", ""):
        return f"it is not the {kind} that was created here"
    return f"{adopted[0]} adopts it" if adopted else None


def policy(props: dict[str, Any]) -> Policy:
    """How the VM of a resource is shut down."""
    from homelab.remote.proxmox.machine import Policy

    return Policy(int(props["shutdown"]["timeout"]), str(props["shutdown"]["otherwise"]))
