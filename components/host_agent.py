"""HostAgent: this program's agent on a host, which the commands of the other components run.

Owns /var/lib/homelab/agents/STACK. Put there before the first command for a host, and taken away after its last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from homelab.errors import HomelabError
from homelab.resources import command as remote
from homelab.resources.described import HostInput, host_of
from homelab.resources.kept_agent import KeptAgent, are_kept, owner
from homelab.stack import Refusal
from remote_scripts.both.stack_folder import Wanted as StackFolder


@dataclass(frozen=True, kw_only=True)
class HostAgentArgs:
    """`host_name`: the host's name; `host`: its settings, the keys of docs/settings.md."""

    host_name: str
    host: HostInput


class HostAgent(pulumi.ComponentResource):
    """No outputs: commands that are declared after it find the agent by themselves (homelab/resources/command.py)."""

    def __init__(self, name: str, args: HostAgentArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:host:HostAgent", name, {}, opts)
        host = host_of(args.host)
        options = pulumi.ResourceOptions(parent=self, depends_on=opts.depends_on if opts else None)
        try:
            kept = KeptAgent.on(f"{name}-put", args.host_name, host, options)
        except HomelabError as error:
            raise Refusal(error) from None
        are_kept(args.host_name, host, kept)
        # Its undoing takes the agent away, too: the last of all.
        wanted = StackFolder(owner=owner(args.host_name))
        options = pulumi.ResourceOptions(parent=self)
        last = remote.layer(f"{name}-agent", host, "stack_folder", wanted, options, place=wanted.owner, is_last=True)
        are_kept(args.host_name, host, last)
        self.register_outputs({})
