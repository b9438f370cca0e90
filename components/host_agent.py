"""HostAgent: this program's agent on a host, which the commands of the other components run.

Owns /var/lib/homelab/agents/STACK. Put there before the first command for a host, and taken away after its last one.
A refresh that finds it missing or changed (HostProbe) has it put there again.
"""

from __future__ import annotations

import pulumi

from homelab.host.resource import HostProbe
from homelab.remote import agent
from homelab.resources import command as remote
from homelab.resources.kept_agent import KeptFolder, owner, run_the_kept
from homelab.settings import Host
from remote_scripts.both.stack_folder import Wanted as StackFolder


class HostAgent(pulumi.ComponentResource):
    """No outputs: commands that are declared after it find the agent by themselves (homelab/resources/command.py).
    `probe`: sees what is there.
    """

    def __init__(self, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:HostAgent", host.name, {}, opts)
        wanted = StackFolder(owner=owner(host.name))
        # Its undoing takes the agent away: the last of all.
        last = remote.layer(
            f"{host.name}-agent",
            host,
            "stack_folder",
            wanted,
            pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None),
            generation=pulumi.Output.concat(agent.version(), " ", probe.generation_of("agent").apply(str)),
            triggers=[wanted.owner],
            is_last=True,
            hooks=remote.putting_the_agent(host, wanted.owner),
            folder=KeptFolder(wanted.owner, probe),
        )
        run_the_kept(host, last)
        self.register_outputs({})
