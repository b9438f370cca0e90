"""The option hookscript of a VM that may take a card: by it the host hands the card over when the VM starts and
stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pulumi

from homelab.remote import scripts
from homelab.resources import command

if TYPE_CHECKING:
    from homelab.settings import Host, Vm


def handover_hook(
    name: str, host: Host, vm: Vm, generation: pulumi.Input[int], opts: pulumi.ResourceOptions
) -> pulumi.Resource:
    """The command that sets the option, and gives it back.

    :param generation: raised when what hands cards over drifted, as HostProbe puts it out.
    """
    # By these it is told from the entry that the VM had before, under another name, or as one that made it.
    holder = f"{name} {'adopted' if vm.create is None else 'created'}"
    return command.script(
        name,
        host,
        pulumi.Output.from_input(generation).apply(
            lambda number: scripts.handover_hook(vm.vmid, int(number), holder=holder)
        ),
        opts,
        identity=[vm.host, str(vm.vmid)],
        told=True,
    )
