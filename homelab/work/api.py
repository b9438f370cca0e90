"""What the work on resources over the Proxmox VE API has in common."""

from __future__ import annotations

from typing import Any, TypeVar

from homelab.remote import host_session
from homelab.remote.proxmox.api import Api
from homelab.resources.base import NodeInputs
from homelab.work.base import OutputsT, Work

NodeT = TypeVar("NodeT", bound=NodeInputs)


class ApiWork(Work[NodeT, OutputsT]):
    """What is done with a resource of a node."""

    def api(self, inputs: NodeT) -> Api:
        """The node's API.

        :raises HomelabError: the host is no longer configured.
        """
        return Api(self.host(inputs), inputs.node)

    def reading(self, inputs: NodeT, path: str, wanted: str) -> Any:
        """A GET for a refresh: at most one of a path in a run, as several resources look at the same VM. A change
        always reads anew."""
        answers = host_session.of(inputs.host).answers
        if path not in answers:
            answers[path] = self.api(inputs).get(path, wanted)
        return answers[path]
