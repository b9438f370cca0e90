"""The systems inside the host's VMs, as the daemon runs them: they boot, answer SSH, reboot, and end with their VM.

What a VM is, and whether it runs, is the API's (lab.api.guests); what a boot makes of its tree is lab.api.guest_system's.
Here is when: the API's tasks, `qm` at a shell and what runs inside a guest tell the daemon that something has changed,
and it brings the systems in line. A guest's processes end when it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, Protocol

import asyncssh

from lab import ports
from lab.api.guest_system import (
    authorized_keys,
    booted,
    environment_of,
    has_system,
    is_connected,
    system_of,
    user_of,
)
from lab.api.guests import BOOT_SECONDS, Guest, all_ids, exclusively, guests_of
from lab.api.qemu_power import ended_itself
from lab.host import units
from lab.host.state import HostState
from lab.processes import Processes
from lab.ssh import Numbers, Server, is_authorized, make_key, public_key
from lab.state import LabError, StatePaths, append_log, now
from lab.timers import Timers

# Between the answer to `reboot` in a guest and the end of its sessions, as on the host.
_GOING_DOWN_SECONDS = 0.1


class Owner(Protocol):
    """What the guests need from the daemon."""

    state: Path
    processes: Processes
    numbers: Numbers

    def fault(self, name: str) -> str | None:
        """Return a fault of the host's, None when it isn't set."""

    def activity(self) -> None:
        """Wake up those who wait for something to happen."""

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something while the daemon serves on; a failure is logged."""


class GuestSide:
    """One VM's system: its SSH server, on an address and a port that stay the lab's, its timers, whether it's up.

    It is the system that its server belongs to (lab.ssh.System).

    Args:
        port: the wanted TCP port, 0 for a free one.
    """

    def __init__(self, owner: Owner, vmid: int, port: int) -> None:
        self._owner = owner
        self.state = owner.state
        self.processes = owner.processes
        self.numbers = owner.numbers
        self.vmid = vmid
        self._host_key = StatePaths(owner.state).guest_key(vmid)
        self._host_key.parent.mkdir(exist_ok=True)
        make_key(self._host_key, f"homelab-lab-guest-{vmid}")
        try:
            self.server = Server(self, self._host_key, port, ports.guest_address(vmid))
        except OSError:
            self.server = Server(self, self._host_key, 0, ports.guest_address(vmid))  # somebody else has it by now
        self._system = system_of(self._fresh())
        self.timers = Timers(self._system.state, owner.processes, lambda: self.environment_of("root"))
        #: The start, in seconds since 1970, that it serves; None while the VM is off. `up` once that has booted.
        self.serving: float | None = None
        self.up = False
        self._network = False
        self._going_down = False
        self._reachable = False
        self._booting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def _fresh(self) -> Guest:
        return Guest(HostState(self.state), "qemu", self.vmid)

    # What the SSH server asks

    @property
    def root(self) -> Path:
        """The guest's file system."""
        return self._system.root

    @property
    def guest(self) -> int:
        """The VM's id."""
        return self.vmid

    def environment_of(self, user: str) -> dict[str, str]:
        """Return the environment in which a user's commands run."""
        return environment_of(self._system, user)

    def accepts(self, user: str, key: asyncssh.SSHKey) -> bool:
        """Let those in whose key is in their authorized_keys."""
        return is_authorized(key, authorized_keys(self._system, user))

    def accepts_password(self, user: str, password: str) -> bool:
        """Cloud images let nobody in by a password."""
        return False

    def fault(self, name: str) -> str | None:
        """Return a fault of commands and scripts: the host's holds in guests too."""
        return self._owner.fault(name)

    def activity(self) -> None:
        """Wake up those who wait for something to happen."""
        self._owner.activity()

    def port_inside(self, address: str, port: int) -> None:
        """No service of a guest's is reached."""

    # Up and down

    def connection(self) -> dict[str, Any]:
        """How to reach it, as `Lab.connection` has it for the host."""
        guest, paths = self._fresh(), StatePaths(self.state)
        user = user_of(guest, guest.config()) if guest.exists else str(guest.system["user"])
        return {
            "host": self.server.address,
            "port": self.server.port,
            "user": user,
            "hostKey": public_key(self._host_key),
            "privateKeyFile": str(paths.user_key),
            "hostKeyFile": f"{self._host_key}.pub",
        }

    def serve(self, started: float | None, *, network: bool) -> None:
        """Be the system of the VM's start at that time; None: the VM is off.

        Args:
            network: whether the host is in its network, and so the VM.
        """
        if self.serving != started:
            if self.serving is not None:
                self.end()
                self._ending = self._owner.in_background(self.processes.kill_system(self._system.state, at_once=True))
            self.serving = started
            if started is not None:
                self._booting = self._owner.in_background(self._boot(started))
        self._network = network
        self._adjust()

    async def _boot(self, started: float) -> None:
        await asyncio.sleep(max(0.0, started + BOOT_SECONDS - time.time()))
        if self._ending is not None:
            # Of the last start: its processes must not be taken for this one's. A cancelled boot doesn't cancel that.
            await asyncio.wait([self._ending])
        guest = self._fresh()
        if not guest.running:
            return
        if has_system(guest.config()):
            self._boot_linux(guest)
        self.up, self._going_down = True, False
        self._adjust()
        self.activity()

    def _boot_linux(self, guest: Guest) -> None:
        running = booted(guest).running
        entry = {"at": now(), "guest": self.vmid, "boot_id": running["boot_id"], "kernel": running["kernel"]}
        append_log(self.state, "guests", entry)
        for timer in units.enabled_timers(self._system):
            self.start_timer(timer["unit"], timer["exec_start"], timer["seconds_after_boot"], since_boot=True)

    def _adjust(self) -> None:
        """Answer SSH if the guest can be reached, and only then."""
        guest = self._fresh()
        reachable = self.up and self._network and not self._going_down and guest.exists
        if reachable:
            config = guest.config()
            reachable = has_system(config) and is_connected(config) and not guest.has_fault("guest-unreachable")
        if reachable == self._reachable:
            return
        self._reachable = reachable
        if reachable:
            self._owner.in_background(self._listen())
        else:
            self.server.close()

    async def _listen(self) -> None:
        await self.server.listen()
        self.activity()

    @property
    def settled(self) -> bool:
        """Whether it is up, and nothing is under way."""
        return self.up and not self._going_down and not self.server.commands and not self.timers.listing()

    def resume(self, started: float) -> None:
        """Be the system of that start of the VM, which has booted."""
        self.serving, self.up, self._going_down = started, True, False

    def end(self) -> None:
        """The VM, or its host, has gone off: break connections, forget timers. Whoever runs in it is the caller's to end."""
        if self._booting is not None:
            self._booting.cancel()
            self._booting = None
        self.serving, self.up, self._reachable = None, False, False
        self.timers.stop_all()
        self.server.close()

    def start_timer(self, unit: str, command: str, seconds: float, *, since_boot: bool) -> None:
        """Run a service's ExecStart in that many seconds from now, or after the guest's boot."""
        passed = time.time() - self.serving if since_boot and self.serving is not None else 0.0
        self.timers.start(unit, command, seconds - passed)

    async def go_down(self) -> bool:
        """What a shutdown from inside does: sessions end, then what runs. False when the VM was off, or went off meanwhile."""
        started = self.serving
        if not self.up or self._going_down:
            return False
        self._going_down = True
        await asyncio.sleep(_GOING_DOWN_SECONDS)
        if self.serving != started:
            return False
        self._adjust()
        self.timers.stop_all()
        await self.processes.kill_system(self._system.state, at_once=False)
        await self.server.wait_commands_ended()
        return self.serving == started


class Guests:
    """The systems of all VMs of the host.

    Args:
        known: lab.json's `guests`: how to reach each, by id. It is kept up to date.
        save: writes lab.json.
    """

    def __init__(self, owner: Owner, known: dict[str, Any], save: Callable[[], None]) -> None:
        self._owner = owner
        self._known = known
        self._save = save
        self._sides: dict[int, GuestSide] = {}
        self._host_is_up = False
        self._network = False

    def take_ports(self) -> None:
        """Take the ports that the guests had."""
        for vmid in list(self._known):
            self._side(int(vmid))

    def _side(self, vmid: int) -> GuestSide:
        if vmid not in self._sides:
            port = int(self._known.get(str(vmid), {}).get("port", 0))
            self._sides[vmid] = GuestSide(self._owner, vmid, port)
        return self._sides[vmid]

    def _note(self, vmid: int) -> dict[str, Any]:
        """Keep in lab.json how a guest is reached."""
        connection = self._side(vmid).connection()
        if self._known.get(str(vmid)) != connection:
            self._known[str(vmid)] = connection
            self._save()
        return connection

    def connection(self, vmid: int) -> dict[str, Any]:
        """How to reach a VM, also one that there will be: its port and key are the lab's from now on.

        Raises:
            LabError: it is a container, or no id of a guest.
        """
        if vmid < 100:
            raise LabError(f"Unable to reach guest {vmid}: wanted a VM's id, which is 100 or more, found {vmid}.")
        _, kind = all_ids(HostState(self._owner.state)).get(vmid, ("", "qemu"))
        if kind == "lxc":
            raise LabError(
                f"Unable to reach guest {vmid} by SSH: wanted a VM, found a container. Containers have no SSH side in "
                f"the lab; use `pct exec {vmid}` on the host."
            )
        return self._note(vmid)

    def running(self, vmid: int) -> GuestSide:
        """A VM whose system is up.

        Raises:
            LabError: it is off, or hasn't booted.
        """
        side = self._sides.get(vmid)
        if side is None or not side.up:
            raise LabError(f"Unable to serve VM {vmid}: wanted it running and booted, found it off or booting.")
        return side

    def server(self, vmid: int) -> Server:
        """A VM's SSH server, listening or not.

        Raises:
            LabError: it is a container, or no id of a guest.
        """
        self.connection(vmid)
        return self._sides[vmid].server

    # Up and down

    def open(self, *, network: bool) -> None:
        """The host has come up, with its network or without."""
        self._host_is_up, self._network = True, network
        self.look()

    def settled(self) -> dict[int, float] | None:
        """When each VM that runs was started, in seconds since 1970; None while one boots or goes down."""
        serving = {vmid: side.serving for vmid, side in self._sides.items() if side.serving is not None}
        return serving if all(self._sides[vmid].settled for vmid in serving) else None

    def resume(self, started: dict[int, float]) -> None:
        """The host is up, with its network, and these VMs go on in the start that they were in."""
        for vmid, when in started.items():
            self._side(vmid).resume(when)
        self.open(network=True)

    def close(self) -> None:
        """The host goes down; what runs in its guests is ended with what runs on it."""
        self._host_is_up = False
        for side in self._sides.values():
            side.end()

    async def wait_commands_ended(self) -> None:
        """Wait until no command runs in any guest."""
        await asyncio.gather(*(side.server.wait_commands_ended() for side in self._sides.values()))

    def look(self) -> None:
        """Bring the systems in line with the VMs: somebody says that something has changed."""
        if not self._host_is_up:
            return
        guests = guests_of(HostState(self._owner.state), "qemu")
        started = {guest.vmid: guest.system_started for guest in guests if guest.running}
        for guest in guests:
            self._note(guest.vmid)
        for vmid, side in self._sides.items():
            side.serve(started.get(vmid), network=self._network)

    def begin_power(self, vmid: int, do: Literal["reboot", "poweroff"]) -> None:
        """Reboot a VM's system, or switch the VM off, from inside and in a moment.

        Raises:
            LabError: it isn't up.
        """
        self._owner.in_background(self._power(self.running(vmid), do))

    async def _power(self, side: GuestSide, do: Literal["reboot", "poweroff"]) -> None:
        if not await side.go_down():
            return
        host = HostState(self._owner.state)
        guest = Guest(host, "qemu", side.vmid)
        with exclusively(host):
            if not guest.running:
                return  # `qm stop` came first
            if do == "reboot":
                guest.restart_system()  # QEMU goes on, and what is pending in the configuration waits on
            else:
                ended_itself(guest)
        self.look()
