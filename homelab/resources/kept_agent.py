"""Where this program's agent lies on a host, for the commands that run it (homelab/remote/agent.py, ADR 33)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulumi

from homelab.host import stack_folder

if TYPE_CHECKING:
    from homelab.settings import Host


@dataclass(frozen=True)
class KeptFolder:
    """A stack's folder on a host. `owner`: its name; `after`: the resource that a command comes after."""

    owner: str
    after: pulumi.Resource
    is_off: pulumi.Input[bool] = False
    """The system is off: a command that was done there stays as it is."""


@dataclass
class HostCommands:
    """What all commands on a host have in the running program; made by `of_program`. `way`: how the host is reached;
    `kept`: the stack's folder there; None: no agent is kept; `hooks`: around each command.
    """

    way: str
    kept: KeptFolder | None = None
    hooks: pulumi.ResourceHookBinding | None = None


_of_way = functools.cache(HostCommands)


def of_program(host: Host) -> HostCommands:
    """What the running program has of the commands on a host.

    :raises HomelabError: its key can't be read.
    """
    # Another text is another machine.
    return _of_way(f"{host.ssh.user}@{host.address}:{host.ssh.port} {host.ssh.pinned_host_key}")


def run_the_kept(host: Host, after: pulumi.Resource) -> None:
    """From here on commands for `host` come after the resource `after`, and run the agent that is kept."""
    of_program(host).kept = KeptFolder(owner(host.name), after)


def owner(host_name: str) -> str:
    """The running stack's folder on a host of the settings."""
    return stack_folder.owner(f"{pulumi.get_project()}/{pulumi.get_stack()}", host_name)
