"""What the work on resources over the Proxmox VE API has in common."""

from __future__ import annotations

from typing import Any, TypeVar

from homelab.provider.base import OutputsT, Work
from homelab.remote.proxmox.api import Api
from homelab.resources.base import NodeInputs

# What a refresh has read already in this process, by host and path: several resources look at the same VM. Only `read`
# uses it; a change always reads anew.
_READINGS: dict[tuple[str, str], Any] = {}


NodeT = TypeVar("NodeT", bound=NodeInputs)


class ApiWork(Work[NodeT, OutputsT]):
    """What is done with a resource of a node."""

    def api(self, inputs: NodeT) -> Api:
        """The node's API.

        :raises HomelabError: the host is no longer configured.
        """
        return Api(self.host(inputs), inputs.node)

    def reading(self, inputs: NodeT, path: str, wanted: str) -> Any:
        """A GET for a refresh: at most one of a path in a run."""
        key = (inputs.host, path)
        if key not in _READINGS:
            _READINGS[key] = self.api(inputs).get(path, wanted)
        return _READINGS[key]
