"""What components have in common: where their parts come in a run, and the steps on their host."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi_command import remote

from homelab.guest.mark import goes_away
from homelab.guest.resource import Guest
from homelab.host.resource import HostProbe
from homelab.resources.command import Place, Request, step
from homelab.settings import Container, Host, Vm
from homelab.shapes import BootSeen


class Component(pulumi.ComponentResource):
    """One of homelab's components: `Class(subject, …, opts=…)`, with a host or guest of the settings as its subject, by
    whose name it goes.

    `kind`: module and name of its type. `_after`: what its parts come after; at first what all of it comes after.
    """

    def __init__(self, kind: str, name: str, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(f"homelab:{kind}", name, {}, opts)
        self._after = opts.depends_on if opts else None

    def _part(self, *after: pulumi.Resource | None) -> pulumi.ResourceOptions:
        """Options of a part that is made after these; without any, after `_after`.

        :param after: None: there is none.
        """
        first = [resource for resource in after if resource is not None]
        return pulumi.ResourceOptions(parent=self, depends_on=first or self._after)


class HostComponent(Component):
    """A component of a host. `probe`: has the host's plan, and tells when one of its layers drifted."""

    def __init__(self, kind: str, host: Host, probe: HostProbe, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(kind, host.name, opts)
        self._host, self._probe = host, probe

    def _step(
        self, name: str, layer: str, wanted: pulumi.Input[Any], *after: pulumi.Resource, drifted: str
    ) -> remote.Command:
        """A step on the host.

        :param name: after the host's.
        :param wanted: the layer's `Wanted`.
        :param drifted: with its drift the step runs again, as the probe calls it.
        """
        request = Request(layer, wanted, self._probe.generation_of(drifted))
        return step(f"{self._host.name}-{name}", place=Place(self._host), request=request, opts=self._part(*after))


class GuestComponent(Component):
    """A component of a guest, which it makes where the settings want that.

    `_instance`: what tells a guest that is made here from a later one of the same id; empty: it is adopted. `_guest`:
    inputs that each resource which changes it has; `_boot_id`: of the host's boot.
    """

    def __init__(
        self,
        kind: str,
        guest: Vm | Container,
        host: Host,
        boot: pulumi.Input[BootSeen],
        opts: pulumi.ResourceOptions | None,
    ) -> None:
        super().__init__(kind, guest.name, opts)
        self._instance: pulumi.Input[str] = ""
        if created := Guest.of(guest, node=host.node_name, opts=self._part()):
            self._instance, self._after = created.instance, [created]
        self._guest: dict[str, Any] = {
            "host": guest.host,
            "node": host.node_name,
            "power": guest.wanted_power,
            "shutdown": guest.shutdown.model_dump(mode="json"),
            "instance": self._instance,
            "goes_away": goes_away(guest.create),
            "boot": boot,
        }
        self._boot_id = pulumi.Output.from_input(boot).apply(lambda seen: seen["id"])
