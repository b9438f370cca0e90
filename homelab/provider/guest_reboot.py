"""The work on a GuestReboot: restarts a guest from inside, only if its running kernel can't use the installed
driver."""

from __future__ import annotations

from homelab.errors import HomelabError
from homelab.nvidia.reading import SystemReading
from homelab.provider.systems import Reached, SystemWork
from homelab.resources.nvidia import GuestReboot
from homelab.text import tell
from remote_scripts.both.nothing import Wanted


class GuestRebootWork(SystemWork[GuestReboot.Inputs, GuestReboot.Outputs]):
    """Restarts a guest from inside if its running kernel can't use the installed driver."""

    resource = GuestReboot

    def create(self, inputs: GuestReboot.Inputs) -> GuestReboot.Outputs:
        name, version = inputs.system_name, inputs.driver
        patience = float(inputs.timeout)
        old = ""

        def restart(reached: Reached, current: SystemReading) -> None:
            nonlocal old
            # Asked for and gone down before it could answer, or because of an `up` that was killed: once is enough.
            reason = reboot_reason(current, version)
            if not reason or current.boot_id != (old or current.boot_id):
                return
            if not old:
                tell(f"{name}: rebooting it, because {reason}")
            old = current.boot_id
            reached.ask("apply", "reboot_guest", Wanted())

        # Over the same connection: a guest that is on its way down takes no new one.
        reading = self.read_system_in_time(inputs, patience, then=restart)
        if not old:
            return GuestReboot.Outputs(boot_id=reading.boot_id)
        if reading.boot_id == old:
            reading = self.read_system_in_time(inputs, patience, old)
        if reason_left := reboot_reason(reading, version):
            raise HomelabError(
                wanted=f"{name}: NVIDIA's driver {version} in use after a reboot",
                found=reason_left,
                why="the card serves one driver alone, and it is still not this one",
                next="look for what loads the other one early: `lsinitramfs /boot/initrd.img-$(uname -r) | grep -E "
                "'nouveau|nvidia'`, `journalctl -b`",
            )
        tell(f"{name}: it is back, kernel {reading.system.running}")
        return GuestReboot.Outputs(boot_id=reading.boot_id)


def reboot_reason(reading: SystemReading, version: str) -> str:
    """Why the running kernel can't use the installed driver; empty where it can."""
    if reading.system.nouveau:
        return "nouveau has the card, and lets go of it at a boot alone"
    if reading.system.loaded and reading.system.loaded != version:
        return f"the module of {reading.system.loaded} is loaded, and {version} is installed"
    return ""
