"""The lab's daemon: keeps one simulated host running.

It owns when things happen (boot, reboot, timers, the faults of the network) and the logs of connections,
commands, boots and timers. What a boot does is `lab.machine`'s; SSH is served by `lab.ssh`, the control
socket by `lab.requests`. `lab.client` starts it as `python -m lab.server`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncssh

from lab.api.auth import Secrets
from lab.api.guest_system import authorized_keys, environment_of
from lab.api.server import ApiServer
from lab.commands import CommandServer
from lab.guests import Guests
from lab.host import addresses
from lab.host.boot import BootResult
from lab.host.state import PVEDAEMON, HostState
from lab.machine import Machine, MachineError
from lab.processes import Processes, end_left_behind
from lab.requests import Answer, ControlServer
from lab.saved import Saved
from lab.scenario import Scenario, ScenarioError, load_scenario
from lab.ssh import Numbers, Server, is_authorized, make_keys, public_key
from lab.state import (
    LOG_NAMES,
    LabError,
    LabFile,
    StatePaths,
    append_log,
    now,
    process_start_time,
    read_lab_file,
    read_log,
    write_lab_file,
)
from lab.timers import Timers

_LOG = logging.getLogger("lab.server")
# sockaddr_un has 108 bytes for the path, with its final zero (unix(7)).
_SOCKET_PATH_MAX = 107
# Between the answer to `reboot` and the end of the sessions. systemd takes about that long to get from one to
# the other: the script that asked goes on for a moment.
_GOING_DOWN_SECONDS = 0.1
# How long guests may take to boot, on a machine under load.
_SETTLE_SECONDS = 60.0
# How often the daemon looks whether its state folder is still there: it ends with it.
_FOLDER_CHECK_SECONDS = 5.0


class Daemon:
    """One lab: the machine, its SSH server, its timers, and the phase that it is in.

    `phase` is booting, up, unreachable (it runs, without its network), dead (it didn't come up), going-down
    or off; `boots` counts the lines of the log of that name.
    """

    def __init__(self, state: Path, processes: Processes, lab: LabFile, commands: CommandServer) -> None:
        self.state = state
        self.processes = processes
        self.numbers = Numbers()
        self.numbers.count(state)
        self.commands = commands
        if self.commands.pid is not None:
            processes.spared.add(self.commands.pid)
        self.environment = Machine.open(state).environment()
        self.timers = Timers(state, processes, lambda: self.environment)
        self.phase = "off"
        self.boots = len(read_log(state, "boots"))
        self._lab = lab
        self.guests = Guests(self, lab.guests, self._save)
        self._ssh: Server | None = None
        self.api = ApiServer(self)
        self._lab.api = {"url": f"http://127.0.0.1:{self.api.port}", "node": lab.node}
        self._booted_at = 0.0
        self._changed = asyncio.Condition()
        self._transition = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._saved: Saved | None = None

    # What the SSH server asks (lab.ssh.System)

    @property
    def root(self) -> Path:
        """The host's file system."""
        return StatePaths(self.state).root

    @property
    def guest(self) -> None:
        """The host is no guest."""

    def environment_of(self, user: str) -> dict[str, str]:
        """Return the environment of a user's commands. Who asks comes over the network, as sshd says it."""
        # The client's own port is of no interest: a fixed one, so that nothing differs between two runs.
        connection = f"{addresses.CLIENT} 50000 {addresses.ADDRESS} {addresses.SSH_PORT}"
        own = self.environment if user == "root" else environment_of(HostState(self.state), user)
        return {**own, "SSH_CONNECTION": connection}

    def accepts(self, user: str, key: asyncssh.SSHKey) -> bool:
        """Let root in with the lab's key, and each account with those that somebody has put there."""
        own = f"{public_key(StatePaths(self.state).user_key)}\n" if user == "root" else ""
        return is_authorized(key, own + authorized_keys(HostState(self.state), user))

    def accepts_password(self, user: str, password: str) -> bool:
        """Let root in with its password."""
        return user == "root" and password == Secrets.of(HostState(self.state)).password

    def fault(self, name: str) -> str | None:
        """Return a fault, read anew: tests change it while the host runs."""
        value = self._faults().get(name)
        return None if value is None else str(value)

    def activity(self) -> None:
        """Wake up those who wait for a command or a connection to start or end, or for a guest to answer."""
        self.in_background(self._tell())

    def port_inside(self, address: str, port: int) -> int | None:
        """Return where pvedaemon answers; of the host's other services none is reached."""
        return self.api.port_inside() if (address, port) in (PVEDAEMON, ("localhost", PVEDAEMON[1])) else None

    # What the API asks (lab.api.server.Owner)

    def guests_changed(self) -> None:
        """Look anew which VMs run."""
        self.guests.look()

    # Serving

    @property
    def ssh(self) -> Server:
        """The SSH server, once `take_port` has made it."""
        assert self._ssh is not None
        return self._ssh

    def take_port(self, port: int) -> None:
        """Take the SSH port: this one if it is free, 0 for any."""
        host_key = StatePaths(self.state).host_key
        try:
            self._ssh = Server(self, host_key, port)
        except OSError:
            _LOG.warning("port %d, which the lab had, is taken; another one is used", port)
            self._ssh = Server(self, host_key, 0)
        paths = StatePaths(self.state)
        self._lab.ssh = {
            "host": "127.0.0.1",
            "port": self.ssh.port,
            "user": "root",
            "password": Secrets.of(HostState(self.state)).password,
            "hostKey": public_key(paths.host_key),
            "privateKeyFile": str(paths.user_key),
            "hostKeyFile": f"{paths.host_key}.pub",
        }

    async def serve(self, ready: Callable[[], None]) -> None:
        """Boot the host, and keep it until asked to stop.

        Args:
            ready: is called when the host has been booted.
        """
        control = ControlServer(self)
        await control.listen(Path(self._lab.control))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        async with self._transition:
            await self._power_on("start")
        self._write_lab_file(pid=os.getpid())
        ready()
        watch = self.in_background(self._end_with_folder())
        await self._ending.wait()
        watch.cancel()
        control.close()
        await self._end()

    def end(self) -> None:
        """Stop serving, also in the middle of a boot."""
        self._interrupted.set()
        self._ending.set()

    async def _end(self) -> None:
        async with self._transition:
            lab = read_lab_file(self.state)
            if lab is None or lab.pid != os.getpid():
                # The folder was removed, or is another daemon's, or the start was given up: leave it alone.
                self.ssh.close()
                self.guests.close()
                await self.api.close()
                await self.processes.kill_all()
                self.commands.close()
                return
            await self._power_off()
            self.commands.close()
            self._write_lab_file(pid=None)
        with contextlib.suppress(FileNotFoundError):
            Path(self._lab.control).unlink()
        if Path(self._lab.control).parent != self.state:
            Path(self._lab.control).parent.rmdir()

    async def _end_with_folder(self) -> None:
        """End when the state folder is removed, or has become another daemon's."""
        while True:
            await asyncio.sleep(_FOLDER_CHECK_SECONDS)
            lab = read_lab_file(self.state)
            if lab is None or lab.pid != os.getpid():
                _LOG.warning("%s is no longer this daemon's: it ends", self.state)
                self.end()

    def _write_lab_file(self, pid: int | None) -> None:
        self._lab.pid = pid
        self._lab.started = None if pid is None else process_start_time(pid)
        write_lab_file(self.state, self._lab)

    def _save(self) -> None:
        """Write what has changed of lab.json, once it is this daemon's."""
        if self._lab.pid is not None:
            self._write_lab_file(self._lab.pid)

    # What the control socket asks

    def status(self) -> Answer:
        """Return the phase, the number of boots, and how many commands run."""
        return {"phase": self.phase, "boots": self.boots, "commands": len(self.ssh.commands)}

    @property
    def settled(self) -> bool:
        """Whether neither a boot nor a shutdown is under way."""
        return self.phase in ("up", "unreachable", "dead", "off")

    async def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition on phase, boots or commands holds; return False at the time limit."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            return False
        return True

    def begin_reboot(self) -> None:
        """Reboot in a moment."""
        self._begin(self._cycle("reboot"))

    def begin_power_off(self) -> None:
        """Switch off in a moment."""
        self._begin(self._power_off)

    def begin_power_on(self) -> None:
        """Switch on; a host that is on but out of reach is switched off first."""
        if self.phase != "up":
            self._begin(self._cycle("power"))

    def start_timer(self, unit: str, command: str, seconds: float, *, since_boot: bool = False) -> None:
        """Run a service's ExecStart in that many seconds from now, or after the boot."""
        passed = time.monotonic() - self._booted_at if since_boot else 0.0
        self.timers.start(unit, command, seconds / float(self._faults().get("timers-run-fast") or 1) - passed)

    async def set_fault(self, name: str, value: object) -> dict[str, Any]:
        """Set a fault, None clears it; return all that are set."""
        async with self._transition:
            Machine.open(self.state).set_fault(name, value)
            self.guests.look()
        return self._faults()

    async def reset(self, wanted: str | None) -> None:
        """Make the host stock again and boot it.

        Args:
            wanted: another scenario's name or path; None for the one that it has, read anew.
        """
        name = wanted or self._lab.scenario
        scenario = load_scenario(name)  # a mistake in it shows before anything of the old host is lost
        self._interrupted.set()
        async with self._transition:
            if not self._ending.is_set():
                self._interrupted.clear()
            await self._power_off()
            self._lab.installed = False
            self._lab.resets += 1
            self._write_lab_file(pid=os.getpid())
            await self.processes.with_children_of_its_own(lambda: install(self.state, scenario))
            self._lab.scenario, self._lab.node, self._lab.installed = name, scenario.node, True
            self._lab.api["node"] = scenario.node
            self.boots = 0
            self.numbers.count(self.state)
            await self._power_on("start")
            self._write_lab_file(pid=os.getpid())

    async def save(self) -> None:
        """Keep the running host as it is now, or once the guests that boot have done so.

        Raises:
            LabError: it isn't up, or something runs or is under way on it.
        """
        await self.wait(lambda: self.phase != "up" or self.guests.settled() is not None, _SETTLE_SECONDS)
        async with self._transition:
            guests = self.guests.settled()
            if self.phase != "up" or guests is None or self.ssh.commands or self.timers.listing():
                raise LabError(
                    f"Unable to save the host in {self.state}: wanted it up, with nothing running on it, found phase {self.phase}, "
                    f"{len(self.ssh.commands)} commands and {len(self.timers.listing())} timers. Wait until it is idle."
                )
            saved = Saved(state=self.state, boots=self.boots, guests=guests, environment=dict(self.environment))
            await self.processes.with_children_of_its_own(saved.keep)
            self._saved = saved

    async def restore(self) -> None:
        """Bring back what `save` kept; LogMarks taken since are of another log.

        Raises:
            LabError: nothing was saved since this daemon started.
        """
        saved = self._saved
        if saved is None:
            raise LabError(f"Unable to restore the host in {self.state}: nothing was saved since its daemon started.")
        self._interrupted.set()
        async with self._transition:
            if not self._ending.is_set():
                self._interrupted.clear()
            await self._end_all()
            self._set_phase("booting")
            await self.processes.with_children_of_its_own(saved.bring_back)
            self._lab.resets += 1
            self._write_lab_file(pid=os.getpid())
            self.environment, self.boots = dict(saved.environment), saved.boots
            self.numbers.count(self.state)
            await self.api.listen()
            await self.ssh.listen()
            self.guests.resume(saved.guests)
            self._set_phase("up")

    def _faults(self) -> dict[str, Any]:
        # Not by Machine.open, which looks through all launchers: every command asks for them.
        return dict(HostState(self.state).machine["faults"])

    # Going up and down

    def _cycle(self, reason: str) -> Callable[[], Awaitable[None]]:
        async def cycle() -> None:
            await self._power_off()
            await self._power_on(reason)

        return cycle

    def _begin(self, change: Callable[[], Awaitable[None]]) -> None:
        """Start going down in a moment; from now on the host isn't settled. Once is enough."""
        if self.phase == "going-down":
            return
        self._set_phase("going-down")

        async def later() -> None:
            async with self._transition:
                await asyncio.sleep(_GOING_DOWN_SECONDS)
                await change()

        self.in_background(later())

    async def _power_on(self, reason: str) -> None:
        """Boot, and listen if the host comes up with its network."""
        self._set_phase("booting")
        self._booted_at = time.monotonic()
        try:
            result = await self.processes.with_children_of_its_own(lambda: self._boot(reason))
        except Exception:
            self._set_phase("dead")
            raise
        self._log_boot(result, reason)
        if result.comes_up:
            self._start_enabled_timers(result)
        await self._until(self._booted_at + result.seconds)
        if self._interrupted.is_set():
            return
        if result.comes_up and result.network:
            await self.api.listen()
            await self.ssh.listen()
        if result.comes_up:
            self.guests.open(network=result.network)
        self._set_phase("dead" if not result.comes_up else "up" if result.network else "unreachable")

    def _boot(self, reason: str) -> BootResult:
        machine = Machine.open(self.state)
        result = machine.boot(reason)
        self.environment = machine.environment()
        return result

    def _log_boot(self, result: BootResult, reason: str) -> None:
        entry = {
            "at": now(),
            "boot_id": result.boot_id,
            "kernel": result.kernel,
            "entry": result.entry,
            "cmdline": result.cmdline,
            "reason": reason,
            "network": result.network,
            **({"problem": result.problem} if result.problem else {}),
        }
        append_log(self.state, "boots", entry)
        self.boots += 1

    def _start_enabled_timers(self, result: BootResult) -> None:
        for timer in result.timers:
            # The time counts from the kernel's start, but a unit starts no earlier than its host is up.
            seconds = max(timer["seconds_after_boot"], result.seconds)
            self.start_timer(timer["unit"], timer["exec_start"], seconds, since_boot=True)

    async def _until(self, moment: float) -> None:
        """Wait until then (time.monotonic), or until the boot is cut short by a stop or a reset."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), max(0.0, moment - time.monotonic()))

    async def _power_off(self) -> None:
        """End everything that runs, as a host that goes down does."""
        await self._end_all()
        await self.processes.with_children_of_its_own(lambda: Machine.open(self.state).shutdown())
        self._set_phase("off")

    async def _end_all(self) -> None:
        self._set_phase("going-down")
        self.timers.stop_all()
        self.ssh.close()
        self.guests.close()
        await self.api.close()
        await self.processes.kill_all()
        await self.ssh.wait_commands_ended()
        await self.guests.wait_commands_ended()
        await self.timers.wait_services_ended()

    def _set_phase(self, phase: str) -> None:
        self.phase = phase
        _LOG.info("phase: %s", phase)
        self.in_background(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something while the daemon serves on; a failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a task failed", exc_info=error)


def install(state: Path, scenario: Scenario) -> None:
    """Write the stock host, in place of what was there; logs start empty."""
    for name in LOG_NAMES:
        StatePaths(state).log(name).unlink(missing_ok=True)
    Machine.install(state, scenario)


def _control_socket(state: Path) -> str:
    path = str(StatePaths(state).control_socket)
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    return str(Path(tempfile.mkdtemp(prefix="homelab-lab-")) / "control.sock")


def _prepare(state: Path, scenario: str) -> LabFile:
    """Make the folder ready: a new lab is installed, one that was there is taken over as it is."""
    (state / "log").mkdir(parents=True, exist_ok=True)
    end_left_behind(state)
    make_keys(state)
    lab = read_lab_file(state)
    if lab is not None and lab.control and Path(lab.control).parent != state:
        shutil.rmtree(Path(lab.control).parent, ignore_errors=True)  # a killed daemon's private folder
    if lab is None or not lab.installed:
        # lab.json comes after the tree: a start that was killed half-way begins again.
        loaded = load_scenario(scenario)
        install(state, loaded)
        kept: dict[str, Any] = {"ssh": lab.ssh, "guests": lab.guests} if lab is not None else {}
        lab = LabFile(scenario, loaded.node, pid=None, started=None, installed=True, control="", **kept)
    lab.control = _control_socket(state)
    return lab


async def _run(arguments: argparse.Namespace, lab: LabFile, commands: CommandServer, ready: Callable[[], None]) -> None:
    daemon = Daemon(arguments.state, Processes(asyncio.get_running_loop()), lab, commands)
    daemon.take_port(int(lab.ssh.get("port", 0)))
    daemon.guests.take_ports()
    if arguments.lifeline_fd is not None:
        asyncio.get_running_loop().add_reader(arguments.lifeline_fd, daemon.end)
    await daemon.serve(ready)


def _detach() -> None:
    """Leave the starter: its grandchild runs on, in a session that it doesn't lead, and init reaps it."""
    if os.fork():
        os._exit(0)
    os.umask(0o022)


def main() -> None:
    """Run a daemon. It says on --ready-fd, in a line of JSON, that it serves, or why it can't."""
    parser = argparse.ArgumentParser(prog="python -m lab.server", description="The daemon of one lab.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, default=None)
    arguments = parser.parse_args()
    _detach()
    ready = os.fdopen(arguments.ready_fd, "w")

    def say(answer: Answer) -> None:
        if not ready.closed:
            ready.write(json.dumps(answer) + "\n")
            ready.close()

    try:
        lab = _prepare(arguments.state, arguments.scenario)
        # Of the host and its guests; found as one of theirs if this process is killed.
        commands = CommandServer({"LAB_STATE": str(arguments.state)})
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
        asyncio.run(_run(arguments, lab, commands, lambda: say({"ok": True})))
    except Exception as error:
        _LOG.exception("the daemon ends")
        text = (
            str(error)
            if isinstance(error, LabError | MachineError | ScenarioError)
            else f"{type(error).__name__}: {error}"
        )
        say({"ok": False, "error": text})
        sys.exit(1)


if __name__ == "__main__":
    main()
