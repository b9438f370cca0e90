"""qm, pct, pvesh, pvenode and pvecm at the host's shell: the API's operations, asked for by root@pam, as on a real node.

Only what is in use is there; anything else ends with exit status 2 and a line in log/programs.jsonl.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.host.cluster import share_keys
from lab.host.state import HostState

from . import container_system, hooks
from .cluster import peer_of
from .errors import ApiError, Died, bad_parameters
from .guest_config import Kind
from .guests import Guest, exclusively
from .quorum import Members
from .responses import Api
from .tables import FORMATS, formatted
from .tasks import Tasks, Work

_KINDS: dict[str, Kind] = {"qm": "qemu", "pct": "lxc"}
_METHODS = {"get": "GET", "set": "PUT", "create": "POST", "delete": "DELETE"}
_ATTEMPTS = 9
_UNKNOWN = "property is not defined in schema"
_POWER = ("start", "stop", "shutdown", "reboot", "suspend", "resume")
_FORMATTED = "[OPTIONS] [FORMAT_OPTIONS]"


def only_reads(name: str, arguments: list[str]) -> bool:
    """Whether a command, such as `qm list`, changes nothing."""
    if name in ("pvenode", "pvecm"):
        return arguments[:1] not in (["expected"], ["updatecerts"])
    return arguments[:1] in ([verb] for verb in ("list", "config", "status", "get"))


_BOTH = {
    *("config", "status", "start", "stop", "shutdown", "reboot", "unlock", "set", "create", "destroy"),
    *("snapshot", "rollback"),
}
_VERBS: dict[Kind, set[str]] = {
    "qemu": _BOTH | {"suspend", "resume", "cleanup"},
    "lxc": _BOTH | {"exec"},
}


class Misused(Exception):
    """A command that isn't known, or was asked for what it hasn't."""


class Unhandled(ApiError):
    """A path that pvesh was asked for and that the API hasn't."""


class TaskFailed(ApiError):
    """A task that a command started and waited for has failed."""


class Shell:
    """What the commands share.

    Args:
        state: the lab's folder.
        tell: says to the daemon that guests have changed.
    """

    def __init__(self, state: Path, tell: Callable[[], object]) -> None:
        self.host = HostState(state)
        self._tell = tell
        self._works: list[tuple[HostState, Work]] = []
        #: What the command ends with: that of a command in a guest.
        self.status = 0
        #: How the command is used, which follows what is wrong with its parameters.
        self.usage = ""
        #: The last task that was waited for.
        self.last_task = ""
        self._api = Api(state, lambda host, work: self._works.append((host, work)))

    def ask(self, method: str, path: str, options: dict[str, list[str]] | None = None) -> Any:
        """Do one operation; a task that it starts is waited for, its log printed.

        Raises:
            ApiError: it is refused, or its task failed.
        """
        peer = peer_of(self.host, path)
        if peer is not None:
            # pvesh does it on that node, by SSH.
            return Shell(peer.host.state, self._tell).ask(method, path, options)
        try:
            answer = self._api.perform(method, path, options or {}, print)
        except ApiError as error:
            self._tell_how_it_tried(error)
            raise
        if method != "GET":
            self._tell()
        if not self._works:
            return answer
        hooks.drive_all(self._works, self._tell)
        tasks = Tasks(self.host)
        self.last_task = str(answer)
        upid = tasks.find(self.last_task)
        *lines, _ = tasks.log(upid) or [""]
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
        status = tasks.status(upid)["exitstatus"]
        if status != "OK":
            raise TaskFailed(500, f"{status}\n")
        return answer

    @staticmethod
    def _tell_how_it_tried(error: ApiError) -> None:
        """What a shell shows in the ten seconds for which a file of the whole cluster can't be had."""
        if match := re.search(r"cfs-lock '([^']+)' error: no quorum", str(error)):
            print(f"trying to acquire cfs lock '{match[1]}' ...\n" * _ATTEMPTS, end="", file=sys.stderr)

    # -- qm and pct --------------------------------------------------------------------------------------
    def guest(self, name: str, arguments: list[str]) -> None:
        """`qm VERB ...` or `pct VERB ...`."""
        kind = _KINDS[name]
        base = f"/nodes/{self.host.node}/{kind}"
        verb, *rest = arguments or [""]
        if (name, verb) == ("qm", "list"):
            _print_vms(self.ask("GET", base))
            return
        if verb not in _VERBS[kind]:
            raise Misused(f"the lab's {name} has no {verb!r}")
        self._require_id(f"{name} {verb} <vmid> [OPTIONS]", rest)
        vmid, words = rest[0], rest[1:]
        one = f"{base}/{vmid}"
        self.usage = f"{name} {verb} <vmid>{' <ostemplate>' if (name, verb) == ('pct', 'create') else ''} [OPTIONS]"
        if verb == "config":
            _print_config(self.ask("GET", f"{one}/config", _options(words)))
        elif verb == "status":
            self._status(one, _options(words))
        elif verb in _POWER:
            self.ask("POST", f"{one}/status/{verb}", _options(words))
        elif verb == "set":
            self.ask("PUT", f"{one}/config", _options(words))
        elif verb == "create":
            given = _options(words[1:] if kind == "lxc" else words) | {"vmid": [vmid]}
            self.ask("POST", base, given | ({"ostemplate": words[:1]} if kind == "lxc" else {}))
        elif verb == "destroy":
            self.ask("DELETE", one, _options(words))
        elif verb == "exec":
            self._inside(Guest(self.host, "lxc", int(vmid)), words)
        elif verb == "cleanup":
            hooks.drive(self.host, hooks.cleanup(Guest(self.host, "qemu", int(vmid)), print))
        elif verb == "unlock":
            self._unlock(Guest(self.host, kind, int(vmid)))
        elif not words:
            raise Misused(f"{verb} needs a snapshot's name")
        elif verb == "snapshot":
            self.ask("POST", f"{one}/snapshot", _options(words[1:]) | {"snapname": words[:1]})
        else:
            self.ask("POST", f"{one}/snapshot/{words[0]}/rollback", _options(words[1:]))

    def _require_id(self, usage: str, words: list[str]) -> None:
        self.usage = usage
        if not words:
            raise Died(f"400 not enough arguments\n{usage}")
        if not words[0].isdigit():
            raise bad_parameters({"vmid": f"type check ('integer') failed - got '{words[0]}'"})

    def _status(self, one: str, options: dict[str, list[str]]) -> None:
        known = self.ask("GET", f"{one}/status/current")
        if options.pop("verbose", ["0"])[-1] == "0":
            # qm prints QMP's own word, such as paused; pct has no other one than running and stopped.
            print(f"status: {known.get('qmpstatus') or known['status']}")
            return
        for key in sorted(set(known) - {"cpu", "ha", "agent", "clipboard", "serial"}):
            print(f"{key}: {known[key]}")

    def _inside(self, guest: Guest, words: list[str]) -> None:
        """pct exec: what runs inside takes its time, and nobody waits for it."""
        guest.config()
        command = words[1:] if words[:1] == ["--"] else words
        if not command:
            raise Died("missing command")
        if not guest.running:
            raise Died(f"container '{guest.vmid}' not running!")
        self.status = container_system.execute(guest, command)

    def lxc_attach(self, words: list[str]) -> None:
        """`lxc-attach --clear-env -n ID [--keep-var NAME]... -- COMMAND...`: LXC's own, by which pct exec does its work."""
        end = words.index("--") if "--" in words else 0
        if words[:2] != ["--clear-env", "-n"] or {*words[3:end:2]} - {"--keep-var"} or not words[end + 1 :]:
            raise Misused(f"the lab's lxc-attach has no {words!r}")
        guest = Guest(self.host, "lxc", int(words[2]))
        if not guest.running:
            print(
                f"lxc-attach: {words[2]}: ../src/lxc/attach.c: get_attach_context: 405 Connection refused - Failed to "
                "get init pid",
                file=sys.stderr,
            )
            self.status = 1
            return
        kept = {name: os.environ[name] for name in words[4:end:2] if name in os.environ}
        self.status = container_system.execute(guest, words[end + 1 :], kept)

    def _unlock(self, guest: Guest) -> None:
        with exclusively(self.host):
            config = guest.config()
            if config.values.pop("lock", None) is None and guest.kind == "lxc":
                raise Died("no lock found trying to remove any lock")
            guest.save(config)

    # -- pvesh -------------------------------------------------------------------------------------------
    def pvesh(self, arguments: list[str]) -> None:
        """`pvesh get|set|create|delete PATH [--option value ...]`, with --output-format json."""
        if len(arguments) < 2 or arguments[0] not in _METHODS:
            raise Misused(f"the lab's pvesh has {', '.join(_METHODS)} and a path")
        options = _options(arguments[2:])
        form = _form(options)
        self.usage = f"pvesh {arguments[0]} <api_path> {_FORMATTED}"
        try:
            answer = self.ask(_METHODS[arguments[0]], arguments[1].rstrip("/"), options)
        except ApiError as error:
            if error.status == 595:
                # pvesh goes to another node by SSH.
                peer = Members(self.host).nodes[arguments[1].split("/")[2]]
                text = f"proxy handler failed: ssh: connect to host {peer['ip']} port 22: {error.reason}"
                raise Died(text) from error
            if error.status == 501:
                raise Unhandled(501, f"No '{arguments[0]}' handler defined for '{arguments[1]}'\n") from error
            if not isinstance(error, TaskFailed):
                raise
            # That the task failed is said, and no failure of the command; its id is what it prints.
            print(error, file=sys.stderr)
            answer = self.last_task
        print(formatted(answer, form), end="")

    # -- pvenode and pvecm -------------------------------------------------------------------------------
    def pvenode(self, arguments: list[str]) -> None:
        """`pvenode task list [--source active ...]` and `pvenode task log UPID`."""
        tasks = f"/nodes/{self.host.node}/tasks"
        verb, words = " ".join(arguments[:2]), arguments[2:]
        if verb == "task list":
            self.usage = f"pvenode task list {_FORMATTED}"
            options = _options(words)
            form = _form(options)
            print(formatted(self.ask("GET", tasks, options), form), end="")
        elif verb == "task log" and words:
            self.usage = "pvenode task log <upid> [OPTIONS]"
            for line in self.ask("GET", f"{tasks}/{words[0]}/log", _options(words[1:])):
                print(line["t"])
        else:
            raise Misused(f"the lab's pvenode has `task list` and `task log UPID`, not {' '.join(arguments)!r}")

    def pvecm(self, arguments: list[str]) -> None:
        """`pvecm status`, `updatecerts` of root's keys alone, and `expected NUMBER`, by which the nodes that are left may write again."""
        members = Members(self.host)
        if arguments[:1] == ["updatecerts"]:
            if not members.quorate:
                raise Died("no quorum - unable to update files")
            share_keys(self.host)
        elif members.name is None:
            text = "Error: Corosync config '/etc/pve/corosync.conf' does not exist - is this node part of a cluster?"
            print(text, file=sys.stderr)
            self.status = 2
        elif arguments == ["status"]:
            print(_cluster_status(members, self.host.node), end="")
            self.status = 0 if members.quorate else 2
        elif len(arguments) == 2 and arguments[0] == "expected" and arguments[1].isdigit():
            members.expect(int(arguments[1]))
        else:
            raise Misused(
                f"the lab's pvecm has `status`, `updatecerts` and `expected NUMBER`, not {' '.join(arguments)!r}"
            )


def _cluster_status(members: Members, node: str) -> str:
    """What `pvecm status` says of the votes, in a node's own form."""
    online = [about for about in members.nodes.values() if about["online"]]
    expected, here = len(members.nodes), members.nodes[node]["id"]
    rows = [f"{one['id']:#010x} {1:10} {one['ip']}{' (local)' if one['id'] == here else ''}" for one in online]
    return "\n".join(
        [
            "Cluster information", "-------------------", f"Name:             {members.name}",
            f"Config Version:   {members.version}", "Transport:        knet", "Secure auth:      on", "",
            "Quorum information", "------------------", "Quorum provider:  corosync_votequorum",
            f"Nodes:            {len(online)}", f"Node ID:          {here:#010x}",
            f"Quorate:          {'Yes' if members.quorate else 'No'}", "",
            "Votequorum information", "----------------------", f"Expected votes:   {expected}",
            f"Highest expected: {expected}", f"Total votes:      {len(online)}",
            f"Quorum:           {expected // 2 + 1} {' ' if members.quorate else 'Activity blocked'}",
            f"Flags:            {'Quorate ' if members.quorate else ''}", "",
            "Membership information", "----------------------", "    Nodeid      Votes Name", *rows, "",
        ]
    )  # fmt: skip


def _form(options: dict[str, list[str]]) -> str:
    """Take out of a command's options how its answer is to be printed."""
    form = options.pop("output-format", ["text"])[-1]
    if form not in FORMATS:
        raise Misused(f"the lab prints {', '.join(FORMATS)}, not {form!r}")
    return form


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


def _print_vms(entries: list[dict[str, Any]]) -> None:
    if entries:
        print("      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID       ")
    for entry in entries:
        print(
            f"{entry['vmid']:>10} {entry['name']:<20} {entry['status']:<10} {entry['maxmem'] >> 20:<10}"
            f" {entry['maxdisk'] / (1 << 30):>12.2f} {entry.get('pid', 0):<10}"
        )


def message(error: ApiError, usage: str) -> str:
    """An error as a command prints it: wrong parameters one by one, with how the command is used."""
    if not error.errors:
        return str(error)
    unknown = [name for name, text in error.errors.items() if text.startswith(_UNKNOWN)]
    if unknown:
        lines = [*(f"Unknown option: {name}" for name in sorted(unknown)), "400 unable to parse option"]
    else:
        lines = [f"{error.status} {error.reason}"]
        lines += [f"{name}: {text.strip()}" for name, text in sorted(error.errors.items())]
    return "\n".join([*lines, usage])


def exit_status(error: ApiError) -> int:
    """What a command ends with: a guest that isn't there is ENOENT, unless it was a task that missed it."""
    if isinstance(error, Unhandled):
        return 1
    missing = str(error).startswith("Configuration file") and "does not exist" in str(error)
    return 2 if missing and not isinstance(error, TaskFailed) else 255
