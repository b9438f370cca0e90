"""The plan for people, in a preview: the host is read, changing nothing, and what an `up` would refuse is refused
here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi

from homelab.errors import HomelabError, UnreachableError
from homelab.later import later
from homelab.resources.host_probe import HostProbe
from homelab.settings import Container, Host, Vm
from homelab.stack import Refusal
from homelab.text import clean

if TYPE_CHECKING:
    from homelab.host import plan
    from homelab.remote import planning
else:
    plan, planning = later("homelab.host.plan"), later("homelab.remote.planning")

# How long a preview waits for a host that may be out of reach, in seconds.
PATIENCE_SECONDS = 2.0


def preview(
    name: str,
    host: Host,
    probe: HostProbe,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    results: list[pulumi.Output[Any]],
    mode: str,
    follows: str = "",
) -> pulumi.Output[bool]:
    """Prints the plan for `host` and its guests in a preview; does nothing in an `up`. The output says whether it did.

    :param vms: the VMs of this host, by name.
    :param containers: the containers of this host, by name.
    :param results: what isn't known yet exactly when something would change.
    :param mode: `auto`: when something would change and the host is in reach; `always`: also when nothing would, and it
        must be in reach; `never`.
    :param follows: as of `plan.describe`.
    """
    if pulumi.runtime.is_dry_run() and mode != "always":
        try:
            _ = host.ssh.key
        except HomelabError as error:
            pulumi.log.warn(clean(f"{name}: previewing without the key to the host: {error.found}"), probe)
            mode = "never"

    async def shown() -> bool:
        if not pulumi.runtime.is_dry_run() or mode == "never":
            return False
        if mode == "auto" and all([await result.is_known() for result in results]):
            return False  # nothing would change: no reason to disturb the host
        try:
            planned = await planning.planned(name, host, vms, containers, PATIENCE_SECONDS)
            text = plan.describe(name, planned.facts, host, planned.want, planned.reboot, planned.files, follows)
        except UnreachableError as error:
            if mode == "always":
                raise Refusal(error) from None
            pulumi.log.info(clean(f"{name} can't be reached ({error.found}): previewed without reading it"), probe)
            return False
        except HomelabError as error:
            raise Refusal(error) from None
        pulumi.log.info(clean("\n".join(part for part in (text, planned.guests) if part)), probe)
        return True

    # An output awaits the coroutine, so that the program doesn't end before it, and fails with it.
    printed: pulumi.Output[bool] = pulumi.Output.from_input(shown())
    return printed
