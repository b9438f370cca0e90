"""What the work on resources over the Proxmox VE API has in common."""

from __future__ import annotations

from typing import TypeVar

from homelab.remote.proxmox.api import Api
from homelab.resources.base import NodeInputs
from homelab.resources.work.base import OutputsT, Work

NodeT = TypeVar("NodeT", bound=NodeInputs)


class ApiWork(Work[NodeT, OutputsT]):
    """What is done with a resource of a node."""

    def api(self, inputs: NodeT) -> Api:
        """The node's API.

        :raises HomelabError: the host is no longer configured.
        """
        return Api(self.host(inputs), inputs.node)
