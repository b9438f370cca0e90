"""What the dynamic resources have in common: where their credentials come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pulumi.dynamic import ConfigureRequest, ResourceProvider

if TYPE_CHECKING:
    from settings import Host, Vm


class HostProvider(ResourceProvider):
    """A provider whose credentials come from the stack's configuration; none of them is in a resource's state.

    `settings` and what reads a host or its API are imported where they are used: a run without a change starts the process of the
    dynamic resources, too, and needs none of them (a quarter of a second).
    """

    serialize_as_secret_always = True
    _hosts: str | None = None
    _vms: str | None = None

    def configure(self, req: ConfigureRequest) -> None:
        self._hosts = req.config.get("hosts")
        self._vms = req.config.get("vms")

    def host(self, props: dict[str, Any]) -> Host:
        """The settings of the resource's host. Raises HomelabError when the configuration no longer has it."""
        from settings import load_host

        return load_host(self._hosts, props["host"])

    def vms(self, props: dict[str, Any]) -> dict[str, Vm]:
        """The settings of the VMs of the resource's host, by name. Raises HomelabError when they are mistaken."""
        from settings import load

        settings = load({"hosts": self._hosts or "{}", "vms": self._vms or "{}"})
        return {name: vm for name, vm in settings.vms.items() if vm.host == props["host"]}
