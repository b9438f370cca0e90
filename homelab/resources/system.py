"""A system that NVIDIA's stack is installed on, and how a script reaches it: the host, a VM over SSH, a container by `pct exec`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi_command import remote

from homelab.errors import HomelabError
from homelab.resources import command as commands
from homelab.resources import limits
from homelab.resources.base import HostProvider
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.nvidia.compatibility import Target
    from homelab.nvidia.reading import Reading
    from homelab.settings import Container, Host, Vm
    from homelab.settings.nvidia import Nvidia

    # A verb and a composed script -> what it prints.
    Run = Callable[[str, str], Awaitable[str]]

# How long one reading may take, in seconds; a slow container takes two or three.
READING_SECONDS = 60
# Between two tries to reach a guest that starts. Nothing on this side tells when it is there.
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class System:
    """Where steps run.

    ``name``: its place in the settings, such as `vms.sandbox`; ``host``: its host's name there; ``ctid``: of a container;
    ``reached``: the SSH settings; ``address``: where they lead (a VM's may be known only once it runs); ``stays``: is it there after
    a `destroy`?; ``after``: with its change all steps look again: another VM, a restart with other cards, the host's driver;
    ``passed``: of a host: slots of cards that VMs get; ``started``: with its change what is installed is verified again: the system, or
    the host below it, was started anew by us.
    """

    target: Target
    name: str
    host: str
    reached: Host
    address: pulumi.Input[str]
    nvidia: Nvidia
    depends_on: tuple[pulumi.Resource, ...]
    after: pulumi.Input[str] = ""
    ctid: int | None = None
    stays: bool = True
    passed: pulumi.Input[list[str]] = field(default_factory=list)
    started: pulumi.Input[str] = ""

    @property
    def inputs(self) -> dict[str, Any]:
        """What a dynamic resource of this system is told; SystemProvider knows it again by that."""
        stack = self.nvidia.model_dump(mode="json", exclude={"proxy", "timeouts"})
        about = {"target": self.target, "system_name": self.name, "host": self.host, "ctid": self.ctid}
        return {
            **about,
            "address": self.address,
            "nvidia": stack,
            "after": self.after,
            "passed": self.passed,
            "stays": self.stays,
        }

    @property
    def purged(self) -> bool:
        """Whether a `destroy` takes back what was installed."""
        return self.stays and self.nvidia.on_destroy == "purge"

    def script(self, name: str, stdin: pulumi.Input[str], opts: pulumi.ResourceOptions) -> remote.Command:
        """A step: a composed script, told line by line, undone on a purge."""
        from homelab.remote import nvidia_steps as steps

        ctid = self.ctid
        text = pulumi.Output.from_input(stdin)
        if ctid is not None:
            text = text.apply(lambda script: steps.in_container(ctid, script))
        return commands.script(
            name,
            self.reached,
            text,
            opts,
            undone=self.purged,
            identity=[self.host, self.name, str(ctid or "")] if self.purged else (),
            told=True,
            address=self.address,
            seconds=limits.of_script(self.reached, self.nvidia),
        )


class SystemProvider(HostProvider):
    """A provider for resources of a system; their inputs have `System.inputs`."""

    def reached(self, props: dict[str, Any]) -> Host:
        """The SSH settings by which scripts of the system are run.

        :raises HomelabError: the configuration no longer has it.
        """
        if props["target"] != "vm":
            return self.host(props)
        vm = self.vms(props).get(_key(props))
        if vm is None or vm.ssh is None:
            raise HomelabError(
                wanted=f"homelab:{props['system_name']}.ssh in the stack's configuration",
                found="it is missing",
                why="it says how to reach the guest",
                next="put it back, or run `pulumi up` to give the guest up",
            )
        return self.host(props).model_copy(update={"ssh": vm.ssh, "address": str(props["address"])})

    def stack(self, props: dict[str, Any]) -> Nvidia | None:
        """What the settings say of it now; None: nothing any more."""
        if props["target"] == "host":
            return self.host(props).nvidia
        guests: Mapping[str, Vm | Container] = self.vms(props) if props["target"] == "vm" else self.containers(props)
        guest = guests.get(_key(props))
        return guest.nvidia if guest else None

    @asynccontextmanager
    async def session(self, props: dict[str, Any], seconds: float) -> AsyncIterator[Run]:
        """Runs scripts on the system, over one connection.

        :param seconds: how long one may take.
        """
        from homelab.remote import nvidia_steps as steps
        from homelab.remote import ssh

        ctid = props.get("ctid")
        async with ssh.connect(self.reached(props)) as session:

            async def run(verb: str, script: str) -> str:
                text = script if ctid is None else steps.in_container(int(ctid), script)
                return await session.run(verb, text, seconds)

            yield run

    async def read_system(self, props: dict[str, Any]) -> Reading:
        """One reading on a connection of its own. Raises as `session`."""
        from homelab.nvidia import reading
        from homelab.remote import nvidia_steps as steps

        async with self.session(props, READING_SECONDS) as run:
            return reading.parse(await run("read_system", steps.read_system(passed=props["passed"])))

    async def read_system_in_time(self, props: dict[str, Any], seconds: float, old_boot: str = "") -> Reading:
        """The first reading, of another boot than ``old_boot``; a guest that was started a moment ago may not answer yet.

        :raises HomelabError: there is none in that time; a host is not waited for.
        """
        from homelab.errors import UnreachableError

        deadline, last = time.monotonic() + seconds, ""
        while True:
            try:
                reading = await self.read_system(props)
                if reading.boot_id != old_boot:
                    return reading
            except UnreachableError as error:
                if props["target"] != "vm":
                    raise
                if not last:
                    tell(
                        f"{props['system_name']}: waiting until it answers at {props['address']}, for {seconds:.0f} s at most"
                    )
                last = error.found
            if time.monotonic() > deadline:
                raise HomelabError(
                    wanted=f"{props['system_name']} in reach at {props['address']}"
                    + (" after its reboot" if old_boot else ""),
                    found=f"{last or 'it has not gone down'}, for {seconds:.0f} s",
                    why="NVIDIA's stack is installed from inside the guest",
                    next="see whether it runs (its console in Proxmox VE) and has that address and SSH port; then run `pulumi up` again: it "
                    "goes on from here",
                )
            await asyncio.sleep(RETRY_SECONDS)


def _key(props: dict[str, Any]) -> str:
    return str(props["system_name"]).rpartition(".")[2]
