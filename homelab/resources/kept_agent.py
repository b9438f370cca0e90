"""KeptAgent: this program's agent on a host, where its commands find it (homelab/remote/agent.py, ADR 33).

A refresh that finds it missing or changed has it put there again. It goes with the component's command, which knows the
way to a host that the settings no longer have; what is left by a run that was killed goes with the host's probe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pulumi

from homelab.later import later
from homelab.resources.base import HostInputs, Owned

if TYPE_CHECKING:
    from homelab.remote import agent, stack_folder
    from homelab.settings import Host
else:
    agent, stack_folder = later("homelab.remote.agent"), later("homelab.remote.stack_folder")


class KeptAgent(Owned):
    """This program's agent on a host."""

    kind = "host:Agent"
    replaced_by = frozenset(("host", "owner"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(HostInputs):
        """`owner`: the stack's folder on the host; `version`: the agent's; `reached`: the way to the host, and its
        key: another machine has none.
        """

        owner: str
        version: str
        reached: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`drift`: what a refresh found, a sentence each."""

        drift: list[str] = field(default_factory=list)

    @classmethod
    def on(cls, name: str, host_name: str, host: Host, opts: pulumi.ResourceOptions) -> KeptAgent:
        """The agent on a host of the settings.

        :raises HomelabError: its key can't be read.
        """
        inputs = {"owner": owner(host_name), "version": agent.version(), "reached": _way_to(host)}
        return cls(name, {"host": host_name, **inputs}, opts)


@dataclass(frozen=True)
class KeptFolder:
    """A stack's folder on a host. `owner`: its name; `after`: the resource that a command comes after."""

    owner: str
    after: pulumi.Resource


@dataclass
class HostCommands:
    """What all commands on a host have in the running program; made by `of_program`. `way`: how the host is reached;
    `kept`: the stack's folder there; None: no agent is kept; `hooks`: around each command.
    """

    way: str
    kept: KeptFolder | None = None
    hooks: pulumi.ResourceHookBinding | None = None


_OF_PROGRAM: dict[str, HostCommands] = {}


def of_program(host: Host) -> HostCommands:
    """What the running program has of the commands on a host.

    :raises HomelabError: its key can't be read.
    """
    way = _way_to(host)
    return _OF_PROGRAM.setdefault(way, HostCommands(way))


def are_kept(host_name: str, host: Host, after: pulumi.Resource) -> None:
    """From here on commands for `host` come after the resource `after`, and run the agent that is kept."""
    of_program(host).kept = KeptFolder(owner(host_name), after)


def owner(host_name: str) -> str:
    """The running stack's folder on a host of the settings."""
    return stack_folder.owner(pulumi.get_project(), pulumi.get_stack(), host_name)


def _way_to(host: Host) -> str:
    """Where a host is reached, and the key by which it is known: another text, another machine.

    :raises HomelabError: the key can't be read.
    """
    return f"{host.ssh.user}@{host.address}:{host.ssh.port} {host.ssh.pinned_host_key}"
