"""KeptScripts: this program's scripts on a host, where its commands find them (homelab/remote/kept_scripts.py, ADR 31).

A refresh that finds one missing or changed has them put there again. They go with the component's command, which knows the way to a host that
the settings no longer have; what is left by a run that was killed goes with the host's probe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pulumi

from homelab.later import later
from homelab.resources.base import HostInputs, Owned

if TYPE_CHECKING:
    from homelab.remote import kept_scripts
    from homelab.settings import Host
else:
    kept_scripts = later("homelab.remote.kept_scripts")


class KeptScripts(Owned):
    """See the module."""

    kind = "host:Scripts"
    replaced_by = frozenset(("host", "owner"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(HostInputs):
        """``owner``: the stack's folder on the host; ``version``: of all of them together."""

        owner: str
        version: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """``drift``: what a refresh found, a sentence each."""

        drift: list[str] = field(default_factory=list)

    @classmethod
    def on(cls, name: str, host_name: str, opts: pulumi.ResourceOptions) -> KeptScripts:
        """Those of a host of the settings."""
        return cls(name, {"host": host_name, "owner": owner(), "version": kept_scripts.version()}, opts)


# How a host is reached -> what its commands come after, in the running program.
_KEPT: dict[tuple[str, int, str], pulumi.Resource] = {}


def are_kept(host: Host, there: pulumi.Resource) -> None:
    """From here on commands for ``host`` come after ``there``, and name the scripts that are kept."""
    _KEPT[_reached(host)] = there


def kept_at(host: Host, address: pulumi.Input[str] | None) -> pulumi.Resource | None:
    """What a command of that system comes after; None: scripts aren't kept there.

    :param address: in place of the host's, as of `homelab.resources.command.connection`.
    """
    return _KEPT.get(_reached(host)) if address in (None, host.address) else None


def owner() -> str:
    """The running stack's folder."""
    return kept_scripts.owner(pulumi.get_project(), pulumi.get_stack())


def _reached(host: Host) -> tuple[str, int, str]:
    return host.address, host.ssh.port, host.ssh.user
