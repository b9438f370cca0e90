"""The option hookscript of a VM that may take a card: by it the host hands the card over when the VM starts and
stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pulumi

from homelab.resources import command
from remote_scripts.both.hookscript import Wanted

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
    return command.layer(
        name,
        host,
        "hookscript",
        Wanted(vmid=vm.vmid, holder=holder),
        opts,
        generation=generation,
        identity=[vm.host, str(vm.vmid)],
    )
