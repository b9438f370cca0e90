"""GuestReboot: a guest restarted from inside, only if its running kernel can't use the installed driver. An act, which owns nothing.

It is needed where another nvidia module is loaded than the installed one, or nouveau has the card: both let go of it at a boot alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource

from homelab.resources.base import replaced_by
from homelab.resources.system import READING_SECONDS, SystemProvider
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.nvidia.reading import Reading

OUTPUTS = ("boot_id", "rebooted")


class GuestRebootProvider(SystemProvider):
    """See the module. Inputs: `System.inputs`, driver (its version, as the driver's step answers), timeout (seconds), after."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        reading, why = asyncio.run(self._booted(props))
        return CreateResult(props["system_name"], {**props, "boot_id": reading.boot_id, "rebooted": why})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return replaced_by(olds, news, *OUTPUTS, "timeout")

    async def _booted(self, props: dict[str, Any]) -> tuple[Reading, str]:
        """The system once no reboot is needed, and why there was one; empty: there was none."""
        from homelab.remote import scripts

        name, version = props["system_name"], str(props["driver"])
        patience = float(props["timeout"])
        reading = await self.read_system_in_time(props, patience)
        why = reboot_reason(reading, version)
        if not why:
            return reading, ""
        tell(f"{name}: rebooting it, because {why}")
        async with self.session(props, READING_SECONDS) as run:
            await run("apply", scripts.compose("reboot_guest.sh"))
        reading = await self.read_system_in_time(props, patience, reading.boot_id)
        if still := reboot_reason(reading, version):
            raise self._no_use(name, version, still)
        tell(f"{name}: it is back, kernel {reading.system.running}")
        return reading, why

    @staticmethod
    def _no_use(name: str, version: str, reason: str) -> Exception:
        from homelab.errors import HomelabError

        return HomelabError(
            wanted=f"{name}: NVIDIA's driver {version} in use after a reboot",
            found=reason,
            why="the card serves one driver alone, and it is still not this one",
            next="look for what loads the other one early: `lsinitramfs /boot/initrd.img-$(uname -r) | grep -E 'nouveau|nvidia'`, `journalctl -b`",
        )


def reboot_reason(reading: Reading, version: str) -> str:
    """Why the running kernel can't use the installed driver; empty where it can."""
    if reading.system.nouveau:
        return "nouveau has the card, and lets go of it at a boot alone"
    if reading.system.loaded and reading.system.loaded != version:
        return f"the module of {reading.system.loaded} is loaded, and {version} is installed"
    return ""


class GuestReboot(Resource, module="homelab", name="GuestReboot"):
    """The dynamic resource. Outputs: ``boot_id``; ``rebooted``: why, empty where it wasn't."""

    boot_id: pulumi.Output[str]
    rebooted: pulumi.Output[str]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(GuestRebootProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)
