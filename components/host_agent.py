"""HostAgent: this program's agent on a host, which the commands of the other components run.

Owns /var/lib/homelab/agents/STACK. Put there before the first command for a host, and taken away after its last one.
A refresh that finds it missing or changed (HostProbe) has it put there again.
"""

from __future__ import annotations

import pulumi

from homelab.host.resource import HostProbe
from homelab.remote import agent
from homelab.resources.command import Place, Request, step
from homelab.resources.kept_agent import KeptFolder, owner, run_the_kept
from homelab.settings import Host
from remote_scripts.both.stack_folder import Wanted as StackFolder

from .component import HostComponent


class HostAgent(HostComponent):
    """No outputs: commands that are declared after it find the agent by themselves (homelab/resources/command.py).
    `probe`: sees what is there.
    """

    def __init__(self, host: Host, *, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("host:HostAgent", host, probe, opts)
        folder = KeptFolder(owner(host.name), probe)
        generation = pulumi.Output.concat(agent.version(), " ", probe.generation_of("agent").apply(str))
        # Before it the agent is put there; its undoing takes the agent away: the last of all.
        last = step(
            f"{host.name}-agent",
            place=Place(host, folder=folder),
            request=Request("stack_folder", StackFolder(owner=folder.owner), generation),
            triggers=[folder.owner],
            is_last=True,
            opts=self._part(),
        )
        run_the_kept(host, last)
        self.register_outputs({})
