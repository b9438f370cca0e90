"""qm, pct and pvesh at the host's shell: the API's operations, asked for by root@pam, as on a real node.

Only what is in use is there; anything else ends with exit status 2 and a line in log/programs.jsonl.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.host.state import HostState

from . import container_system
from .auth import Authenticator
from .errors import ApiError, Died
from .guest_config import Kind
from .guests import Guest, exclusively
from .responses import Api
from .tasks import Tasks, Work
from .users import ROOT

_KINDS: dict[str, Kind] = {"qm": "qemu", "pct": "lxc"}
_METHODS = {"get": "GET", "set": "PUT", "create": "POST", "delete": "DELETE"}
_POWER = ("start", "stop", "shutdown", "reboot")


class Misused(Exception):
    """A command that isn't known, or was asked for what it hasn't."""


class Shell:
    """What the commands share.

    Args:
        state: the lab's folder.
        power: reboots the host or shuts it down.
    """

    def __init__(self, state: Path, power: Callable[[str], None]) -> None:
        self.host = HostState(state)
        self._works: list[tuple[HostState, Work]] = []
        #: What the command ends with: that of a command in a guest.
        self.status = 0
        # No tickets are made or read at a shell, and no certificate is shown.
        authenticator = Authenticator(b"")
        self._api = Api(state, authenticator, "", lambda host, work: self._works.append((host, work)), power)

    def ask(self, method: str, path: str, options: dict[str, list[str]] | None = None) -> Any:
        """Do one operation; a task that it starts is waited for, its log printed.

        Raises:
            ApiError: it is refused, or its task failed.
        """
        answer = self._api.perform(ROOT, method, path, options or {})
        if not self._works:
            return answer
        for host, work in self._works:
            _carry_out(host, work)
        self._works.clear()
        tasks = Tasks(self.host)
        upid = tasks.find(str(answer))
        *lines, _ = tasks.log(upid) or [""]
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
        status = tasks.status(upid)["exitstatus"]
        if status != "OK":
            raise ApiError(500, f"{status}\n")
        return answer

    # -- qm and pct --------------------------------------------------------------------------------------
    def guest(self, name: str, arguments: list[str]) -> None:
        """`qm VERB ...` or `pct VERB ...`."""
        kind = _KINDS[name]
        base = f"/nodes/{self.host.node}/{kind}"
        verb, *rest = arguments or [""]
        if verb == "list":
            (_print_vms if kind == "qemu" else _print_containers)(self.ask("GET", base))
            return
        if not rest or not rest[0].isdigit():
            raise Misused(f"the lab's {name} has no {' '.join(arguments)!r}")
        vmid, words = rest[0], rest[1:]
        one = f"{base}/{vmid}"
        if verb == "config":
            _print_config(self.ask("GET", f"{one}/config", _options(words)))
        elif verb == "pending":
            _print_pending(self.ask("GET", f"{one}/pending"))
        elif verb == "status":
            print(f"status: {self.ask('GET', f'{one}/status/current')['status']}")
        elif verb in _POWER:
            self._power(kind, one, verb, vmid, words)
        elif verb == "set":
            self.ask("PUT", f"{one}/config", _options(words))
        elif verb == "create":
            given = _options(words[1:] if kind == "lxc" else words) | {"vmid": [vmid]}
            self.ask("POST", base, given | ({"ostemplate": words[:1]} if kind == "lxc" else {}))
        elif verb == "destroy":
            self.ask("DELETE", one, _options(words))
        elif kind == "lxc" and verb in ("exec", "push", "pull"):
            self._inside(Guest(self.host, "lxc", int(vmid)), verb, words)
        elif verb == "unlock":
            self._unlock(Guest(self.host, kind, int(vmid)))
        elif verb in ("snapshot", "delsnapshot", "rollback", "listsnapshot"):
            self._snapshot(one, verb, words)
        else:
            raise Misused(f"the lab's {name} has no {verb!r}")

    def _power(self, kind: Kind, one: str, verb: str, vmid: str, words: list[str]) -> None:
        if kind == "lxc" and verb in ("stop", "shutdown"):
            # The command does nothing for a container that is off; the API refuses.
            if self.ask("GET", f"{one}/status/current")["status"] == "stopped":
                return
        elif verb != "start":
            self.ask("GET", f"{one}/config")  # a missing one is said in the words of a shell
        self.ask("GET", f"{one}/config")
        self.ask("POST", f"{one}/status/{verb}", _options(words))

    def _inside(self, guest: Guest, verb: str, words: list[str]) -> None:
        """pct exec, push and pull: what runs inside takes its time, and nobody waits for it."""
        guest.config()
        if verb == "exec":
            command = words[1:] if words[:1] == ["--"] else words
            if not command:
                raise Died("missing command")
            self.status = container_system.execute(guest, command)
            return
        paths = [word for word in words[:2] if not word.startswith("-")]
        options = _options(words[2:])
        if len(paths) != 2:
            raise Misused(f"{verb} needs two paths")
        mode = int(options["perms"][0], 8) if "perms" in options else None
        if verb == "push":
            container_system.push(guest, self.host.rooted(paths[0]), paths[1], mode)
        else:
            container_system.pull(guest, paths[0], self.host.rooted(paths[1]), mode)

    def _unlock(self, guest: Guest) -> None:
        with exclusively(self.host):
            config = guest.config()
            if config.values.pop("lock", None) is None:
                raise Died(f"no lock found for {guest.label}")
            guest.save(config)

    def _snapshot(self, one: str, verb: str, words: list[str]) -> None:
        if verb == "listsnapshot":
            for entry in self.ask("GET", f"{one}/snapshot"):
                print(f"`-> {entry['name']:<20} {entry.get('description', '')}")
            return
        if not words:
            raise Misused(f"{verb} needs a snapshot's name")
        name, options = words[0], _options(words[1:])
        if verb == "snapshot":
            self.ask("POST", f"{one}/snapshot", options | {"snapname": [name]})
        elif verb == "delsnapshot":
            self.ask("DELETE", f"{one}/snapshot/{name}", options)
        else:
            self.ask("POST", f"{one}/snapshot/{name}/rollback", options)

    # -- pvesh -------------------------------------------------------------------------------------------
    def pvesh(self, arguments: list[str]) -> None:
        """`pvesh get|set|create|delete PATH [--option value ...]`, with --output-format json."""
        if len(arguments) < 2 or arguments[0] not in _METHODS:
            raise Misused(f"the lab's pvesh has {', '.join(_METHODS)} and a path")
        options = _options(arguments[2:])
        form = options.pop("output-format", ["text"])[0]
        for name in ("noborder", "noheader", "human-readable", "quiet"):
            options.pop(name, None)
        answer = self.ask(_METHODS[arguments[0]], arguments[1].rstrip("/"), options)
        if arguments[0] == "get" and form not in ("json", "json-pretty"):
            raise Misused("the lab's pvesh needs --output-format json or json-pretty")
        if answer is not None:
            print(json.dumps(answer, indent=3 if form == "json-pretty" else None, sort_keys=True))


def _carry_out(host: HostState, work: Work) -> None:
    """A task's work, waited for here."""
    while True:
        with exclusively(host):
            seconds = next(work, None)
        if seconds is None:
            return
        time.sleep(seconds)


def _options(words: list[str]) -> dict[str, list[str]]:
    """`--cores 4 -memory 512 --purge` as parameters; one without a value is a switch."""
    found: dict[str, list[str]] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or word.strip("-") == "":
            raise Misused(f"unexpected argument {word!r}")
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = queue.pop(0) if queue and not queue[0].startswith("--") else "1"
        found.setdefault(name, []).append(value)
    return found


def _print_config(values: dict[str, Any]) -> None:
    for key in sorted(set(values) - {"digest", "lxc"}):
        text = str(values[key])
        print(f"{key}: {text}" if key != "description" else f"description: {text.rstrip()}".replace("\n", "%0A"))
    for key, value in values.get("lxc", []):
        print(f"{key}: {value}")


def _print_pending(entries: list[dict[str, Any]]) -> None:
    for entry in sorted(entries, key=lambda e: str(e["key"])):
        if entry["key"] == "digest":
            continue
        if "value" in entry:
            print(f"{'del' if entry.get('delete') else 'cur'} {entry['key']}: {entry['value']}")
        if "pending" in entry:
            print(f"new {entry['key']}: {entry['pending']}")


def _print_vms(entries: list[dict[str, Any]]) -> None:
    if entries:
        print("      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID       ")
    for entry in entries:
        print(
            f"{entry['vmid']:>10} {entry['name']:<20} {entry['status']:<10} {entry['maxmem'] >> 20:<10}"
            f" {entry['maxdisk'] / (1 << 30):>12.2f} {entry.get('pid', 0):<10}"
        )


def _print_containers(entries: list[dict[str, Any]]) -> None:
    if entries:
        print("VMID       Status     Lock         Name                ")
    for entry in entries:
        print(f"{entry['vmid']:<10} {entry['status']:<10} {entry.get('lock', ''):<12} {entry['name']:<20}")


def message(error: ApiError) -> str:
    """An error as a command prints it: wrong parameters one by one."""
    if not error.errors:
        return str(error)
    lines = [f"{name}: {text.strip()}" for name, text in sorted(error.errors.items())]
    return "\n".join([f"{error.status} {error.reason}", *lines])
