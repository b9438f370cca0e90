"""What the dynamic resources have in common: where their credentials come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pulumi.dynamic import ConfigureRequest, ResourceProvider

if TYPE_CHECKING:
    from settings import Host


class HostProvider(ResourceProvider):
    """A provider whose credentials come from the stack's configuration; none of them is in a resource's state.

    `settings` and what reads a host or its API are imported where they are used: a run without a change starts the process of the
    dynamic resources, too, and needs none of them (a quarter of a second).
    """

    serialize_as_secret_always = True
    _hosts: str | None = None

    def configure(self, req: ConfigureRequest) -> None:
        self._hosts = req.config.get("hosts")

    def host(self, props: dict[str, Any]) -> Host:
        """The settings of the resource's host. Raises HomelabError when the configuration no longer has it."""
        from settings import load_host

        return load_host(self._hosts, props["host"])
