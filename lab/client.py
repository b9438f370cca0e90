"""`Lab`: start, inspect, disturb and stop a lab from Python. What `python -m lab` and the tests use.

Importing this is cheap: the standard library only; the SSH server runs in the daemon, and `lab.machine` is
imported when it is first asked for.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode, urlsplit

from lab.control import ControlConnection, request
from lab.state import (
    LOG_NAMES,
    LabError,
    LabFile,
    StatePaths,
    is_running,
    locked,
    process_start_time,
    read_lab_file,
    read_log,
    write_lab_file,
)

if TYPE_CHECKING:
    from lab.machine import Machine

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 300.0
# How long it is waited for what has to come: no measure of speed, but the end of what hangs.
WAIT_SECONDS = 300.0
STOP_SECONDS = 30.0

# What a file is in a snapshot: type (file, directory, link, other), permission bits, and the content's
# SHA-256 (a link's target; empty for the rest).
SnapshotEntry = tuple[str, int, str]
_LISTS_OF_JOBS = frozenset(("etc/pve/jobs.cfg", "etc/pve/replication.cfg", "etc/pve/vzdump.cron"))


@dataclass(frozen=True)
class LogMark:
    """A point in a lab's logs: how many entries each had. `resets` tells whether they were emptied since."""

    resets: int
    entries: Mapping[str, int]


def _named(scenario: str) -> str:
    """Return a scenario's name, or its file's absolute path: the daemon works in another folder."""
    return str(Path(scenario).absolute()) if scenario.endswith((".yaml", ".yml")) else scenario


def default_state(scenario: str) -> Path:
    """Return where a scenario's lab lies unless said otherwise: .lab/<scenario> in the project."""
    name = Path(scenario).stem if scenario.endswith((".yaml", ".yml")) else scenario
    return REPOSITORY / ".lab" / name


class Lab:
    """A lab: a simulated host that is running, or was. Use `Lab.start` or `Lab.open`."""

    def __init__(self, state: Path) -> None:
        """Take a lab's state folder, which must hold a lab.json."""
        self.state = state
        self._paths = StatePaths(state)
        self._lifeline: int | None = None

    # Life

    @classmethod
    def start(cls, scenario: str, state: Path | None = None, *, outlives_caller: bool = False) -> Self:
        """Start a lab, or take the one that runs in the folder. A context manager: it stops at the end.

        A folder whose lab was stopped or killed is started as it was left, on its port if that's free.

        Args:
            scenario: a name that `python -m lab scenarios` lists, or a YAML file's path.
            state: its folder; default .lab/<scenario> in the project.
            outlives_caller: False ends the lab with this process, however that ends.

        Raises:
            LabError: no such scenario, the folder has another one's lab, the start failed.
        """
        _require_linux()
        state = (state if state is not None else default_state(scenario)).absolute()
        scenario = _named(scenario)
        lab = cls(state)
        with locked(state, "start"):
            before = read_lab_file(state)
            _require_same_scenario(state, before, scenario)
            if not is_running(before):
                lab._spawn(scenario, outlives_caller)
        return lab

    @classmethod
    def open(cls, state: Path) -> Self:
        """Take a lab that was started before, running or not.

        Raises:
            LabError: there is none in the folder.
        """
        lab = cls(state.absolute())
        lab._require_lab_file()
        return lab

    def _spawn(self, scenario: str, outlives_caller: bool) -> None:
        """Start the daemon and wait until it serves, or says why not."""
        self._paths.daemon_log.parent.mkdir(parents=True, exist_ok=True)
        ready_read, ready_write = os.pipe()
        arguments = ["--state", str(self.state), "--scenario", scenario]
        passed = [ready_write]
        if not outlives_caller:
            lifeline_read, self._lifeline = os.pipe()
            passed.append(lifeline_read)
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        try:
            try:
                self._start_daemon(arguments, passed, {**os.environ, "PYTHONPATH": path})
            finally:
                for descriptor in passed:
                    os.close(descriptor)
            answer = _read_line(ready_read, START_SECONDS)
        except BaseException:
            self._drop_lifeline()
            raise
        finally:
            os.close(ready_read)
        if not answer.get("ok"):
            self._drop_lifeline()
            raise LabError(answer.get("error") or self._why_not_ready(scenario))

    def _start_daemon(self, arguments: list[str], descriptors: list[int], environment: dict[str, str]) -> None:
        with self._paths.daemon_log.open("ab") as log:
            for name, descriptor in zip(("--ready-fd", "--lifeline-fd"), descriptors, strict=False):
                arguments += [name, str(descriptor)]
            # It forks once more and ends: the daemon isn't this process's child, nor leader of a session.
            subprocess.run(
                [sys.executable, "-m", "lab.server", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,
                check=False,
            )

    def _why_not_ready(self, scenario: str) -> str:
        tail = "\n".join(self._paths.daemon_log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        return (
            f"Unable to start the lab {scenario!r} in {self.state}: its daemon ended, or said nothing for "
            f"{START_SECONDS:.0f} seconds. The end of {self._paths.daemon_log}:\n{tail}"
        )

    @property
    def running(self) -> bool:
        """Whether the daemon runs (the host in it may be down)."""
        return is_running(read_lab_file(self.state))

    def status(self) -> dict[str, Any]:
        """Return lab.json with `running`, and `phase`: the daemon's (see lab.server.Daemon), or stopped."""
        lab = self._require_lab_file()
        shown = json.loads(self._paths.lab_file.read_text(encoding="utf-8"))
        if not is_running(lab):
            return {**shown, "pid": None, "running": False, "phase": "stopped"}
        return {**shown, "running": True, "phase": request(self.state, "status")["phase"]}

    def stop(self) -> None:
        """Stop the lab; the folder stays, with the host as it is. Nothing happens when it doesn't run."""
        if not self.state.exists():
            return
        with locked(self.state, "stop"):
            lab = read_lab_file(self.state)
            if lab is not None and is_running(lab):
                self._stop_daemon(lab)
        self._drop_lifeline()

    def _stop_daemon(self, lab: LabFile) -> None:
        assert lab.pid is not None
        try:
            with ControlConnection(self.state, STOP_SECONDS) as connection:
                connection.request("stop")
                if connection.wait_closed():
                    return
        except LabError:
            if process_start_time(lab.pid) != lab.started:
                return  # it ended by itself meanwhile
        # It doesn't answer any more: end it, and what its host leaves running.
        from lab.processes import end_left_behind

        os.kill(lab.pid, signal.SIGKILL)
        end_left_behind(self.state)
        write_lab_file(self.state, LabFile(**{**lab.__dict__, "pid": None, "started": None}))

    def reset(self, scenario: str | None = None) -> None:
        """Make the host stock again and boot it; same port, same keys, logs empty.

        Args:
            scenario: another one, name or path; None for the lab's own, read anew.
        """
        request(self.state, "reset", scenario=None if scenario is None else _named(scenario))

    def save(self) -> None:
        """Keep the running host, and its guests, as they are now, for `restore`; while the lab runs.

        Raises:
            LabError: something runs on it.
        """
        request(self.state, "save")

    def restore(self) -> None:
        """Bring back what `save` kept, without a boot: sessions end, and the logs are those of then."""
        request(self.state, "restore")

    def _drop_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _require_lab_file(self) -> LabFile:
        lab = read_lab_file(self.state)
        if lab is None:
            raise LabError(
                f"Unable to use the lab in {self.state}: wanted its lab.json, found none. No lab was started "
                "there. Start one with `python -m lab start`."
            )
        return lab

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The host

    @property
    def connection(self) -> dict[str, Any]:
        """How to reach the host: host, port, user, password, hostKey, privateKeyFile, hostKeyFile."""
        return dict(self._require_lab_file().ssh)

    @property
    def api(self) -> dict[str, Any]:
        """How to reach the Proxmox VE API: url (pvedaemon's, from this machine), node."""
        return dict(self._require_lab_file().api)

    def ask_api(self, verb: str, path: str, user: str = "root@pam", **parameters: Any) -> Any:
        """Ask the Proxmox VE API from this machine, without SSH, as the owner's web interface does.

        Args:
            verb: GET, POST, PUT or DELETE.
            path: below /api2/json, such as `/nodes/pve/qemu`.
            user: in whose name, which its tasks then have. The lab signs a ticket for any name, and refuses it nothing.
            parameters: text, numbers, lists; a boolean is sent as 1 or 0.

        Returns:
            The answer's `data`.

        Raises:
            LabError: another status than 200; the text is `500 VM is locked (backup)`, with the messages of parameters.
            OSError, http.client.HTTPException: no answer came, or none in time.
        """
        from lab.api.auth import ticket
        from lab.host.state import HostState

        given = {name: int(value) if isinstance(value, bool) else value for name, value in parameters.items()}
        form, has_body = urlencode(given, doseq=True), verb in ("PUT", "POST")
        head = {"Cookie": f"PVEAuthCookie={quote(ticket(HostState(self.state), user), safe='')}"}
        connection = http.client.HTTPConnection(urlsplit(self.api["url"]).netloc, timeout=WAIT_SECONDS)
        try:
            connection.request(
                verb,
                f"/api2/json{path}" + (f"?{form}" if form and not has_body else ""),
                form if has_body else None,
                {**head, "Content-Type": "application/x-www-form-urlencoded"} if has_body else head,
            )
            answer = connection.getresponse()
            body = json.loads(answer.read() or b"{}")
        finally:
            connection.close()
        if answer.status != 200:
            errors = "".join(f" {name}: {text}" for name, text in body.get("errors", {}).items())
            raise LabError(f"{answer.status} {answer.reason}{errors}")
        return body["data"]

    def guest(self, vmid: int) -> dict[str, Any]:
        """How to reach a VM: host, port, user, hostKey, privateKeyFile, hostKeyFile, as `connection` for the host.

        They stay the same as long as there is the lab; also those of a VM that is yet to be made. `user` has sudo; root
        gets in with the same key.

        Raises:
            LabError: it is a container; or the lab doesn't run, and has no such VM.
        """
        lab = self._require_lab_file()
        if is_running(lab):
            return dict(request(self.state, "guest", id=vmid)["connection"])
        if str(vmid) not in lab.guests:
            raise LabError(
                f"Unable to reach guest {vmid} of the lab in {self.state}: wanted one of its VMs, found "
                f"{', '.join(sorted(lab.guests)) or 'none'}. While the lab doesn't run, no other gets a port."
            )
        return dict(lab.guests[str(vmid)])

    @property
    def root(self) -> Path:
        """The host's file system."""
        return self._paths.root

    @property
    def machine(self) -> Machine:
        """The host's machine, as it is now."""
        from lab.machine import Machine

        return Machine.open(self.state)

    def run(
        self, text: str, stdin: str | None = None, check: bool = True, timeout: float = WAIT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run bash text on the host as a person at its console would: same environment, no SSH.

        Raises:
            subprocess.CalledProcessError: with check, the exit status isn't 0; its notes have the output.
        """
        done = subprocess.run(
            ["bash", "-c", text],
            env=self.machine.environment(),
            cwd=self.root / "root",
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            error = subprocess.CalledProcessError(done.returncode, text, done.stdout, done.stderr)
            error.add_note(f"stdout: {done.stdout}\nstderr: {done.stderr}")
            raise error
        return done

    def fault(self, name: str, value: Any = True) -> None:
        """Set a fault (FAULTS in lab/machine.py lists them); None clears it."""
        request(self.state, "fault", name=name, value=value)

    def reboot(self, wait: bool = True, timeout: float = WAIT_SECONDS) -> None:
        """Reboot the host as its `reboot` command would; with wait, return when it's settled again."""
        boots = request(self.state, "status")["boots"]
        ignored = request(self.state, "reboot")["phase"] == "up"
        if wait and not ignored:
            self.wait_settled(boots=boots + 1, timeout=timeout)

    def power_cycle(self) -> None:
        """Switch the host off and on again, which also helps one that hangs or lost its network."""
        for change in ("poweroff", "power-on"):
            request(self.state, change)
            self.wait_settled()

    # Waiting

    def wait_settled(self, boots: int = 0, timeout: float = WAIT_SECONDS) -> str:
        """Wait until no boot is under way and there were at least that many; return the phase.

        Raises:
            LabError: as the other waits, it did not happen in that many seconds.
        """
        return str(self._wait("settled", timeout, boots=boots)["phase"])

    def wait_guest(self, vmid: int, timeout: float = WAIT_SECONDS) -> None:
        """Wait until a VM answers SSH."""
        self._wait("answering", timeout, guest=vmid)

    def wait_idle(self) -> None:
        """Wait until no command that came over SSH runs on the host, also none whose client is gone."""
        self._wait("idle", WAIT_SECONDS)

    def wait_disconnected(self, guest: int | None = None) -> None:
        """Wait until the host (or a guest) has noticed that no SSH client is connected any more."""
        self._wait("disconnected", WAIT_SECONDS, guest=guest)

    def wait_command(self, text: str, timeout: float = WAIT_SECONDS, guest: int | None = None) -> None:
        """Wait until a command runs that contains text, in its command line or the script on its stdin."""
        self._wait("command", timeout, text=text, guest=guest)

    def _wait(self, what: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        # The daemon's time limit is the one that counts: its error says how things stand.
        return request(self.state, "wait", seconds + 10, **{"for": what}, seconds=float(seconds), **arguments)

    def timers(self) -> list[dict[str, Any]]:
        """Return the armed timers: unit, command, left (seconds)."""
        return list(request(self.state, "timers")["timers"])

    # Logs

    def mark(self) -> LogMark:
        """Return this point in the logs, to ask for what came after it."""
        entries = {name: len(read_log(self.state, name)) for name in LOG_NAMES}
        return LogMark(self._require_lab_file().resets, entries)

    def log(self, name: str, since: LogMark | None = None) -> list[dict[str, Any]]:
        """Return the entries of one log (lab.state.LOG_NAMES), or those after a mark."""
        entries = read_log(self.state, name)
        if since is None or since.resets != self._require_lab_file().resets:
            return entries
        return entries[since.entries[name] :]

    def connections(self, since: LogMark | None = None, guest: int | None = None) -> list[dict[str, Any]]:
        """Return the SSH connections to the host, or to a guest."""
        return [entry for entry in self.log("connections", since) if entry.get("guest") == guest]

    def commands(self, since: LogMark | None = None, guest: int | None = None) -> list[dict[str, Any]]:
        """Return the commands that came over SSH and have ended, on the host or in a guest."""
        return [entry for entry in self.log("commands", since) if entry.get("guest") == guest]

    def guest_boots(self, vmid: int, since: LogMark | None = None) -> list[dict[str, Any]]:
        """Return the boots of a VM's system."""
        return [entry for entry in self.log("guests", since) if entry["guest"] == vmid]

    def boots(self, since: LogMark | None = None) -> list[dict[str, Any]]:
        """Return the boots."""
        return self.log("boots", since)

    def programs(self, since: LogMark | None = None) -> list[dict[str, Any]]:
        """Return the runs of simulated programs that change something."""
        return self.log("programs", since)

    def api_calls(self, since: LogMark | None = None) -> list[dict[str, Any]]:
        """Return the API's requests: who, method, path, parameters (secrets hidden), status, reason."""
        return self.log("api", since)

    def snapshot(self, *folders: str) -> dict[str, SnapshotEntry]:
        """Return what the host's folders hold, for a comparison byte for byte.

        Args:
            folders: relative to the host's root; default etc and boot. The ESPs are always in. Lists of jobs, which Proxmox VE writes anew when a guest
                is removed, never are.

        Returns:
            Path (`etc/default/grub`, `esp/<UUID>/loader/loader.conf`) -> SnapshotEntry.
        """
        found: dict[str, SnapshotEntry] = {}
        for folder in folders or ("etc", "boot"):
            add_to_snapshot(found, self.root / folder.strip("/"), folder.strip("/"))
        add_to_snapshot(found, self.state / "esp", "esp")
        return found


def add_to_snapshot(found: dict[str, SnapshotEntry], path: Path, name: str) -> None:
    """Add a file, or a folder and all in it, under a name."""
    if not os.path.lexists(path) or name in _LISTS_OF_JOBS:
        return
    found[name] = _snapshot_entry(path)
    if found[name][0] == "directory":
        for child in sorted(path.iterdir()):
            add_to_snapshot(found, child, f"{name}/{child.name}")


def _snapshot_entry(path: Path) -> SnapshotEntry:
    info = path.lstat()
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return "link", mode, str(path.readlink())
    if stat.S_ISDIR(info.st_mode):
        return "directory", mode, ""
    if stat.S_ISREG(info.st_mode):
        return "file", mode, hashlib.sha256(path.read_bytes()).hexdigest()
    return "other", mode, ""


def _read_line(descriptor: int, seconds: float) -> dict[str, Any]:
    """Read the daemon's one line; {} when it ended without, or took too long."""
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, 65536) if ready else b""
        if not chunk:
            return {}
        line += chunk
    answer: dict[str, Any] = json.loads(line)
    return answer


def _require_linux() -> None:
    if sys.platform != "linux":
        raise LabError(
            f"Unable to start a lab: wanted Linux, found {sys.platform}. The simulated host's scripts run in "
            "this machine's bash, with GNU coreutils and /proc. Use a Linux machine, a VM or WSL; a real "
            "host can be managed from here with `pulumi up --stack homelab`."
        )


def _require_same_scenario(state: Path, before: LabFile | None, scenario: str) -> None:
    if before is not None and before.installed and before.scenario != scenario:
        raise LabError(
            f"Unable to start the lab {scenario!r} in {state}: it holds a lab of {before.scenario!r}. Give "
            "another --state, or remove that folder to begin anew."
        )
